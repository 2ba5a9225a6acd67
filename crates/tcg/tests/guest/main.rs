//! A real guest: Debian's kernel under real QEMU, driven through the API and its console only.

mod balloon;
mod drives;
mod jail;
mod network;
#[path = "../support/mod.rs"]
mod support;
mod timer;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use support::{BOUND, Guest, Vmm};

/// The original's default arguments, unchanged.
const ARGS: &str = "console=ttyS0 noapic reboot=k panic=1 pci=off nomodules rw";

fn boot_source(guest: &Guest, with_initrd: bool) -> serde_json::Value {
    let mut source = json!({ "kernel_image_path": guest.kernel, "boot_args": ARGS });
    if with_initrd {
        source["initrd_path"] = json!(guest.initrd);
    }
    source
}

/// A file of `size` bytes, all `byte`.
fn file(directory: &Path, name: &str, size: usize, byte: u8) {
    fs::write(directory.join(name), vec![byte; size]).unwrap();
}

/// Everything that needs a guest that runs, on one boot.
#[test]
fn a_guest_from_start_to_reboot() {
    let directory = tempfile::tempdir().unwrap();
    let Some(guest) = Guest::make(directory.path()) else {
        return;
    };
    file(directory.path(), "stub", 512, b'r');
    file(directory.path(), "stub2", 512, b'w');
    file(directory.path(), "root", 4096, b'0');
    // Not a whole number of sectors: the guest must not see the rest, and it must stay.
    file(directory.path(), "disk", (1 << 20) + 100, b'D');
    file(directory.path(), "image", 2 << 20, b'I');
    std::os::unix::fs::symlink("image", directory.path().join("stub.attached")).unwrap();

    let mut vmm = Vmm::start(directory.path());
    vmm.ok(
        "PUT",
        "/machine-config",
        &json!({ "vcpu_count": 2, "mem_size_mib": 128 }),
    );
    vmm.ok("PUT", "/boot-source", &boot_source(&guest, true));
    vmm.ok("PUT", "/metrics", &json!({ "metrics_path": "metrics" }));
    vmm.put_drive("ro", "stub", false, true);
    vmm.put_drive("rw", "stub2", false, false);
    vmm.put_drive("root", "root", true, true);
    vmm.ok(
        "PUT",
        "/vsock",
        &json!({ "guest_cid": 3, "uds_path": "v.sock" }),
    );
    let entropy = json!({ "rate_limiter": { "bandwidth": { "size": 250, "refill_time": 250 } } });
    vmm.ok("PUT", "/entropy", &entropy);
    let balloon = json!({ "amount_mib": 8, "deflate_on_oom": true, "stats_polling_interval_s": 1 });
    vmm.ok("PUT", "/balloon", &balloon);
    let taps = network::taps();
    if let Some(taps) = &taps {
        network::configure(&vmm, taps);
    }
    let start = Instant::now();
    vmm.action("InstanceStart");
    println!("InstanceStart answered after {:?}", start.elapsed());
    stand_still_while_the_kernel_prints(&mut vmm);
    vmm.wait_line("READY");
    println!("the guest was ready after {:?}", start.elapsed());
    assert_eq!(vmm.request("GET", "/", "").1["state"], "Running");
    console_shows_what_the_kernel_printed(&mut vmm);

    devices_are_as_configured(&mut vmm, taps.is_some());
    state_machine_after_the_start(&vmm);
    drives::are_swapped(&mut vmm, directory.path());
    drives::a_failed_swap_changes_nothing(&mut vmm, directory.path());
    drives::are_swapped_under_load(&mut vmm, directory.path());
    drives::have_limits(&mut vmm);
    balloon::gives_memory(&mut vmm);
    entropy_has_a_quota(&mut vmm);
    if let Some(taps) = &taps {
        network::carry_traffic(&mut vmm, taps);
    }
    pause_and_resume(&mut vmm);
    vmm.action("FlushMetrics");
    metrics_count(directory.path(), taps.is_some());

    vmm.tell("sync; reboot -f");
    let status = vmm.wait();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(!vmm.log().contains("panicked"));
}

/// As on a host that is busy with something else, when the kernel has most to say.
fn stand_still_while_the_kernel_prints(vmm: &mut Vmm) {
    vmm.wait_line("Linux version");
    vmm.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(500));
    vmm.signal(Signal::CONT);
}

/// No character of it is lost.
fn console_shows_what_the_kernel_printed(vmm: &mut Vmm) {
    let shown = vmm.seen.clone();
    // On a busy host the guest may have been started anew.
    let boot = shown
        .iter()
        .rposition(|line| line.contains("Linux version"));
    let shown = &shown[boot.expect("a boot")..];
    let log = vmm.shell("dmesg");
    for line in shown.iter().filter(|line| line.starts_with('[')) {
        assert!(log.contains(line), "{line:?} is not in {log}");
    }
}

fn devices_are_as_configured(vmm: &mut Vmm, network: bool) {
    assert_eq!(vmm.shell("nproc"), "2");
    let cmdline = vmm.shell("cat /proc/cmdline");
    assert!(
        cmdline.starts_with(
            "console=ttyS0 reboot=k panic=1 pci=off nomodules rw pci=off root=/dev/vda ro tsc_early_khz="
        ),
        "{cmdline}"
    );
    // The root drive first, the others in the order of their requests.
    assert_eq!(vmm.shell("cat /sys/block/vd?/size"), "8 1 1");
    assert_eq!(vmm.shell("cat /sys/block/vd?/ro"), "1 1 0");
    let mut kinds: Vec<_> = vmm
        .shell("cat /sys/bus/virtio/devices/*/device")
        .split(' ')
        .map(str::to_owned)
        .collect();
    kinds.sort();
    // Virtio device types: 1 network, 2 block, 4 entropy, 5 balloon, 0x13 vsock.
    let expected = [
        "0x0001", "0x0001", "0x0002", "0x0002", "0x0002", "0x0004", "0x0005", "0x0013",
    ];
    assert_eq!(kinds, expected[if network { 0 } else { 2 }..]);
}

fn state_machine_after_the_start(vmm: &Vmm) {
    let post_boot = "The requested operation is not supported after starting the microVM.";
    for (path, body) in [
        ("/actions", json!({ "action_type": "InstanceStart" })),
        (
            "/machine-config",
            json!({ "vcpu_count": 1, "mem_size_mib": 128 }),
        ),
        ("/boot-source", json!({ "kernel_image_path": "k" })),
        ("/vsock", json!({ "guest_cid": 3, "uds_path": "x" })),
        (
            "/balloon",
            json!({ "amount_mib": 1, "deflate_on_oom": true }),
        ),
        (
            "/network-interfaces/x",
            json!({ "iface_id": "x", "host_dev_name": "x" }),
        ),
    ] {
        assert_eq!(vmm.fault("PUT", path, &body), post_boot);
    }
    vmm.action("FlushMetrics");
}

/// 1000 bytes in a second, of which a guest, slow as it may be, asks for 64 at a time.
fn entropy_has_a_quota(vmm: &mut Vmm) {
    let start = Instant::now();
    let read = vmm.shell("head -c 4000 /dev/hwrng | wc -c");
    let time = start.elapsed();
    assert_eq!(read, "4000");
    // A bucketful may have been there, and the kernel may have kept some.
    assert!(time > Duration::from_secs(3), "{time:?}");
}

fn metrics_count(directory: &Path, network: bool) {
    let lines = fs::read_to_string(directory.join("metrics")).unwrap();
    let sum = |group: &str, name: &str| -> u64 {
        lines
            .lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                line[group][name].as_u64().unwrap_or(0)
            })
            .sum()
    };
    assert!(sum("block_ro", "read_bytes") >= 2 << 20);
    assert!(sum("block_rw", "write_bytes") >= 5);
    assert!(sum("entropy", "entropy_bytes") >= 4000);
    assert!(sum("entropy", "entropy_rate_limiter_throttled") >= 2);
    assert!(sum("block_rw", "flush_count") >= 1);
    assert!(sum("block_ro", "update_count") >= 20);
    assert_eq!(
        sum("block_ro", "update_fails") + sum("block_rw", "update_fails"),
        2
    );
    assert_eq!(
        sum("block", "read_bytes"),
        ["block_root", "block_ro", "block_rw"]
            .map(|it| sum(it, "read_bytes"))
            .iter()
            .sum::<u64>()
    );
    assert_eq!(sum("put_api_requests", "drive_count"), 3);
    if network {
        let sent = ["net_net", "net_slow"].map(|it| sum(it, "tx_bytes_count"));
        assert!(sent[0] > 1_000_000 && sent[1] > 2_000_000, "{sent:?}");
        assert_eq!(sum("net", "tx_bytes_count"), sent[0] + sent[1]);
        assert!(sum("net", "rx_packets_count") > 10);
    }
}

fn pause_and_resume(vmm: &mut Vmm) {
    vmm.ok("PATCH", "/vm", &json!({ "state": "Paused" }));
    assert_eq!(vmm.request("GET", "/", "").1["state"], "Paused");
    // A swap does not wake the guest.
    vmm.patch_drive("ro", "stub");
    assert_eq!(vmm.request("GET", "/", "").1["state"], "Paused");
    vmm.ok("PATCH", "/vm", &json!({ "state": "Resumed" }));
    vmm.wait_line("[vdb] new size: 1 ");
}

#[test]
fn a_panic_is_told_from_a_reboot() {
    let directory = tempfile::tempdir().unwrap();
    let Some(guest) = Guest::make(directory.path()) else {
        return;
    };
    let mut vmm = Vmm::start(directory.path());
    vmm.ok("PUT", "/boot-source", &boot_source(&guest, false));
    // Besides: the console goes to a file.
    let no_file = json!({ "serial_out_path": "missing/console" });
    vmm.ok("PUT", "/serial", &no_file);
    let start = json!({ "action_type": "InstanceStart" });
    assert_eq!(
        vmm.fault("PUT", "/actions", &start),
        "Start microvm error: Cannot prepare the serial console's output for QEMU: No such file or directory (os \
         error 2)"
    );
    vmm.ok("PUT", "/serial", &json!({ "serial_out_path": "console" }));
    vmm.action("InstanceStart");
    assert_eq!(vmm.wait().code(), Some(0));
    let console = fs::read(directory.path().join("console")).unwrap();
    assert!(String::from_utf8_lossy(&console).contains("Kernel panic"));
    assert!(
        vmm.log()
            .contains("The guest panicked: Kernel panic - not syncing: VFS"),
        "{}",
        vmm.log()
    );
}

/// The processors' threads are held then, and with them the news of the end.
#[test]
fn the_end_of_qemu_shows_while_paused() {
    let directory = tempfile::tempdir().unwrap();
    let Some(guest) = Guest::make(directory.path()) else {
        return;
    };
    let mut vmm = Vmm::start(directory.path());
    vmm.ok("PUT", "/boot-source", &boot_source(&guest, true));
    vmm.action("InstanceStart");
    vmm.ok("PATCH", "/vm", &json!({ "state": "Paused" }));
    assert!(!vmm.log().contains("stand still"), "{}", vmm.log());
    let qemu = vmm.qemu().expect("QEMU is no child");
    let qemu = rustix::process::Pid::from_raw(qemu.cast_signed()).unwrap();
    rustix::process::kill_process(qemu, rustix::process::Signal::KILL).unwrap();
    assert_eq!(vmm.wait().code(), Some(1), "{}", vmm.log());
    assert!(vmm.log().contains("QEMU failed: "), "{}", vmm.log());
}

/// The whole configuration in a file, no API; then the process is killed.
#[test]
fn qemu_never_outlives_us() {
    let directory = tempfile::tempdir().unwrap();
    let Some(guest) = Guest::make(directory.path()) else {
        return;
    };
    let balloon = json!({ "amount_mib": 4, "deflate_on_oom": false });
    let config = json!({
        "boot-source": boot_source(&guest, true), "drives": [], "balloon": balloon, "network-interfaces": [],
    });
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let mut vmm = Vmm::start_with(directory.path(), |command| {
        command.args(["--config-file", "config.json"]);
    });
    vmm.wait_line("READY");
    assert_eq!(vmm.request("GET", "/balloon", "").1["amount_mib"], 4);
    let fault = vmm.request("GET", "/balloon/statistics", "").1;
    assert_eq!(
        fault["fault_message"],
        "Internal VMM error: Balloon: Received stats query when stats are disabled."
    );
    let qemu = vmm.qemu().expect("QEMU is no child");
    vmm.kill();
    let deadline = Instant::now() + BOUND;
    while Path::new(&format!("/proc/{qemu}")).exists() {
        assert!(Instant::now() < deadline, "QEMU outlives its parent");
        std::thread::sleep(Duration::from_millis(10));
    }
}
