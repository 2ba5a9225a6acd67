//! Guests that are booted for how they end.

use std::path::Path;

use fc_conformance::subject::GuestFiles;
use serde_json::json;

use crate::running::{ARGS, boot_source};
use crate::{OnFiles, file};

pub const CASES: &[(&str, OnFiles)] = &[
    (
        "ends::panic_of_a_guest_without_its_partition",
        panic_without_partition,
    ),
    ("ends::guest_from_a_config_file", from_config_file),
];

/// Cases for guests that notice keys.
pub const BY_KEYS: &[(&str, OnFiles)] = &[("ends::ctrl_alt_del", ctrl_alt_del)];

/// No initrd and no such partition: the kernel panics, and with `panic=1` reboots.
fn panic_without_partition(binary: &Path, files: &GuestFiles) {
    let directory = tempfile::tempdir().unwrap();
    let mut vmm = files.start(binary, directory.path(), &["--log-path", "log"]);
    file(directory.path(), "root", 4096, 0);
    let boot = json!({ "kernel_image_path": files.kernel, "boot_args": ARGS });
    let root = json!({
        "drive_id": "root", "path_on_host": "root", "is_root_device": true, "is_read_only": false,
        "partuuid": "0eaa91a0-01",
    });
    vmm.accept("PUT", "/boot-source", &boot);
    vmm.accept("PUT", "/drives/root", &root);
    vmm.action("InstanceStart");
    let line = vmm.wait_line("ommand line: ");
    assert!(line.contains(" root=PARTUUID=0eaa91a0-01 rw"), "{line}");
    assert!(!line.contains("root=/dev/vda"), "{line}");
    vmm.wait_line("Kernel panic - not syncing");
    assert_eq!(vmm.wait().code(), Some(0));
}

fn from_config_file(binary: &Path, files: &GuestFiles) {
    let directory = tempfile::tempdir().unwrap();
    file(directory.path(), "root", 1 << 20, b'R');
    let config = json!({
        "boot-source": boot_source(directory.path(), files),
        "drives": [
            { "drive_id": "root", "path_on_host": "root", "is_root_device": true, "is_read_only": false },
        ],
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 160 },
        "logger": { "log_path": "log", "level": "Debug" },
    });
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let mut vmm = files.start(binary, directory.path(), &["--config-file", "config.json"]);
    vmm.wait_line("READY");
    assert_eq!(vmm.state(), "Running");
    assert_eq!(vmm.get("/machine-config")["vcpu_count"], 2);
    // A kernel that was built for one processor uses one.
    assert_eq!(
        vmm.shell("uname -v | grep -q SMP && grep -c ^processor /proc/cpuinfo || echo 2"),
        "2"
    );
    let line = vmm.shell("cat /proc/cmdline");
    assert!(line.contains(" root=/dev/vda rw"), "{line}");
    assert_eq!(
        vmm.shell("printf written > /dev/vda && sync && echo done"),
        "done"
    );
    let root = std::fs::read(directory.path().join("root")).unwrap();
    assert!(root.starts_with(b"writtenRRR"));
    vmm.type_line("reboot -f");
    assert_eq!(vmm.wait().code(), Some(0));
}

fn ctrl_alt_del(binary: &Path, files: &GuestFiles) {
    let directory = tempfile::tempdir().unwrap();
    let mut vmm = files.start(binary, directory.path(), &[]);
    vmm.accept("PUT", "/boot-source", &boot_source(directory.path(), files));
    vmm.action("InstanceStart");
    vmm.wait_line("READY");
    // Nobody in the guest listens for it: the kernel restarts at once.
    vmm.action("SendCtrlAltDel");
    assert_eq!(vmm.wait().code(), Some(0));
}
