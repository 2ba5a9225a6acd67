//! A guest that runs: states, kernel arguments, metrics, the end by a reboot.

use std::path::Path;

use fc_conformance::initrd;
use fc_conformance::subject::GuestFiles;
use fc_conformance::vmm::Vmm;
use serde_json::{Value, json};

use crate::devices::{self, Offers};
use crate::{OnGuest, drives, vsock};

pub const CASES: &[(&str, OnGuest)] = &[
    ("running::state_and_configuration", state_and_configuration),
    ("running::kernel_arguments", kernel_arguments),
    (
        "running::second_start_and_configuration_are_refused",
        refused,
    ),
    ("running::another_drive_is_refused", drive_refused),
    ("running::metrics", metrics),
];

/// What ends the guest comes last.
pub const LAST: &[(&str, OnGuest)] = &[("running::reboot_ends_with_0", reboot)];

/// The original runtime's default arguments.
pub const ARGS: &str = "console=ttyS0 noapic reboot=k panic=1 pci=off nomodules rw";

/// The guest that most cases share.
pub struct Guest {
    /// Its VMM.
    pub vmm: Vmm,
    /// The VMM's directory and everything in it; removed after the VMM's end.
    pub directory: tempfile::TempDir,
    /// Whether its root image has modules with drivers.
    pub has_modules: bool,
    /// What had to exist on the host before.
    _host: Option<devices::Tap>,
}

impl Guest {
    /// Configures and boots it as the runtime does: request by request.
    pub fn boot(binary: &Path, files: &GuestFiles, offers: &Offers) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vmm = files.start(
            binary,
            directory.path(),
            &["--log-path", "log", "--level", "Debug"],
        );
        vmm.accept("PUT", "/metrics", &json!({ "metrics_path": "metrics" }));
        vmm.accept(
            "PUT",
            "/machine-config",
            &json!({ "vcpu_count": 1, "mem_size_mib": 192 }),
        );
        vmm.accept("PUT", "/boot-source", &boot_source(directory.path(), files));
        drives::configure(&vmm, files);
        vmm.accept(
            "PUT",
            "/vsock",
            &json!({ "guest_cid": 3, "uds_path": vsock::SOCKET }),
        );
        vmm.accept("PUT", "/entropy", &json!({}));
        let tap = devices::configure(&vmm, offers);
        vmm.action("InstanceStart");
        let mut guest = Self {
            vmm,
            directory,
            has_modules: files.rootfs.is_some(),
            _host: tap,
        };
        guest.vmm.wait_line("READY");
        guest
    }

    /// Runs a shell command in the guest; its output with blanks for line ends.
    pub fn shell(&mut self, command: &str) -> String {
        self.vmm.shell(command)
    }

    /// Waits in the guest until a shell command prints `expected`; at most for so long that the other cases have the
    /// shell again if it never does.
    ///
    /// # Panics
    /// It printed something else until then.
    pub fn wait_for(&mut self, command: &str, expected: &str) {
        let printed = self.shell(&format!(
            "n=0; until [ \"$({command})\" = '{expected}' ] || [ $n = 600 ]; do n=$((n + 1)); sleep 0.1; done; {command}"
        ));
        assert_eq!(printed, expected, "{command}");
    }
}

/// A boot source of the suite's own guest, made in `directory`.
pub fn boot_source(directory: &Path, files: &GuestFiles) -> Value {
    let base = match &files.base_initrd {
        Some(path) => std::fs::read(path).unwrap(),
        None => Vec::new(),
    };
    let program = Path::new(env!("CARGO_BIN_EXE_conformance-guest"));
    std::fs::write(directory.join("initrd"), initrd::make(&base, program)).unwrap();
    json!({ "kernel_image_path": files.kernel, "initrd_path": "initrd", "boot_args": ARGS })
}

fn state_and_configuration(guest: &mut Guest) {
    let vmm = &guest.vmm;
    let info = vmm.get("/");
    assert_eq!(
        (&info["state"], &info["id"]),
        (&json!("Running"), &json!("conformance-1"))
    );
    assert_eq!(vmm.get("/machine-config")["mem_size_mib"], 192);
    let config = vmm.get("/vm/config");
    assert_eq!(config["boot-source"]["boot_args"], ARGS);
    assert_eq!(
        config["vsock"],
        json!({ "guest_cid": 3, "uds_path": vsock::SOCKET })
    );
    // Memory that the kernel does not keep for itself.
    let memory: u64 = guest
        .shell("grep MemTotal /proc/meminfo | tr -dc 0-9")
        .parse()
        .unwrap();
    assert!((96 * 1024..192 * 1024).contains(&memory), "{memory} KiB");
    assert_eq!(guest.shell("grep -c ^processor /proc/cpuinfo"), "1");
}

/// A VMM may add to them, and leave out what keeps its machine from booting.
fn kernel_arguments(guest: &mut Guest) {
    let line = guest.shell("cat /proc/cmdline");
    let words: Vec<_> = line.split(' ').collect();
    for word in ARGS.split(' ').filter(|word| *word != "noapic") {
        assert!(words.contains(&word), "no {word} in {line}");
    }
    let root = words.iter().position(|word| *word == "root=/dev/vda");
    let root = root.unwrap_or_else(|| panic!("no root device in {line}"));
    assert_eq!(words.get(root + 1), Some(&"ro"), "{line}");
    // The root device's alone counts.
    assert!(!line.contains("PARTUUID"), "{line}");
}

const TOO_LATE: &str = "The requested operation is not supported after starting the microVM.";

fn drive_refused(guest: &mut Guest) {
    let drive = json!({ "drive_id": "n", "path_on_host": "stub", "is_root_device": false, "is_read_only": true });
    assert_eq!(guest.vmm.refuse("PUT", "/drives/n", &drive), TOO_LATE);
}

fn refused(guest: &mut Guest) {
    for (method, path, body) in [
        ("PUT", "/actions", json!({ "action_type": "InstanceStart" })),
        (
            "PUT",
            "/machine-config",
            json!({ "vcpu_count": 1, "mem_size_mib": 128 }),
        ),
        ("PATCH", "/machine-config", json!({ "vcpu_count": 2 })),
        ("PUT", "/boot-source", json!({ "kernel_image_path": "k" })),
        ("PUT", "/vsock", json!({ "guest_cid": 3, "uds_path": "x" })),
        ("PUT", "/entropy", json!({})),
        ("PUT", "/logger", json!({ "level": "Info" })),
        ("PUT", "/metrics", json!({ "metrics_path": "other" })),
    ] {
        assert_eq!(
            guest.vmm.refuse(method, path, &body),
            TOO_LATE,
            "{method} {path}"
        );
    }
    // Whether it is a request at all is looked at first.
    let fault = guest
        .vmm
        .refuse("PUT", "/machine-config", &json!({ "vcpu_count": 1 }));
    assert!(fault.contains("missing field `mem_size_mib`"), "{fault}");
}

/// Has the metrics written, and reads all lines.
pub fn metrics_until_now(guest: &Guest) -> Vec<Value> {
    guest.vmm.action("FlushMetrics");
    let text = std::fs::read_to_string(guest.directory.path().join("metrics")).unwrap();
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    text.lines().map(parse).collect()
}

/// A counter's growth in all of these lines.
pub fn sum(lines: &[Value], group: &str, name: &str) -> u64 {
    lines
        .iter()
        .filter_map(|line| line[group][name].as_u64())
        .sum()
}

/// One JSON object per line, with the growth since the line before.
fn metrics(guest: &mut Guest) {
    let first = metrics_until_now(guest);
    let second = metrics_until_now(guest);
    assert_eq!(second.len(), first.len() + 1);
    assert_eq!(second[..first.len()], first);
    assert!(sum(&first, "put_api_requests", "boot_source_count") >= 1);
    assert!(sum(&first, "put_api_requests", "drive_count") >= 3);
    assert!(sum(&first, "put_api_requests", "actions_count") >= 2);
    let last = &second[first.len()];
    assert_eq!(last["put_api_requests"]["actions_count"], 1, "{last}");
    assert_eq!(last["put_api_requests"]["drive_count"], 0, "{last}");
    let time = last["utc_timestamp_ms"].as_u64().unwrap();
    assert!(time > 1_600_000_000_000, "{time}");
}

fn reboot(guest: &mut Guest) {
    guest.vmm.type_line("sync; reboot -f");
    let status = guest.vmm.wait();
    assert_eq!(status.code(), Some(0), "{status}");
}
