//! What can be asked of a VM that has not started.

use std::path::Path;

use fc_conformance::vmm::Vmm;
use serde_json::json;

use crate::{OnBinary, file};

pub const CASES: &[(&str, OnBinary)] = &[
    ("before_start::instance_info", instance_info),
    ("before_start::whole_configuration", whole_configuration),
    (
        "before_start::what_needs_a_running_guest_is_refused",
        refused,
    ),
];

fn instance_info(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let version = vmm.get("/version")["firecracker_version"].clone();
    assert!(version.is_string());
    assert_eq!(
        vmm.get("/"),
        json!({
            "id": "conformance-1", "state": "Not started", "vmm_version": version, "app_name": "Firecracker",
        })
    );
}

fn whole_configuration(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let machine = json!({
        "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
    });
    assert_eq!(vmm.get("/machine-config"), machine);
    let nothing = json!({
        "balloon": null, "drives": [],
        "boot-source": { "kernel_image_path": "", "initrd_path": null, "boot_args": null },
        "cpu-config": null, "logger": null, "machine-config": machine, "metrics": null, "mmds-config": null,
        "network-interfaces": [], "vsock": null, "entropy": null, "pmem": [], "memory-hotplug": null,
    });
    assert_eq!(vmm.get("/vm/config"), nothing);

    vmm.accept("PUT", "/entropy", &json!({}));
    vmm.accept("PUT", "/logger", &json!({ "log_path": "log" }));
    vmm.accept("PUT", "/metrics", &json!({ "metrics_path": "metrics" }));
    let mut with_entropy = nothing;
    with_entropy["entropy"] = json!({ "rate_limiter": null });
    // Where log and metrics go is not told.
    assert_eq!(vmm.get("/vm/config"), with_entropy);
}

fn refused(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    file(directory.path(), "disk", 512, 0);
    let drive = json!({ "drive_id": "a", "path_on_host": "disk", "is_root_device": false, "is_read_only": true });
    vmm.accept("PUT", "/drives/a", &drive);
    for (method, path, body) in [
        ("PATCH", "/vm", json!({ "state": "Paused" })),
        ("PATCH", "/vm", json!({ "state": "Resumed" })),
        (
            "PATCH",
            "/drives/a",
            json!({ "drive_id": "a", "path_on_host": "disk" }),
        ),
        ("PUT", "/actions", json!({ "action_type": "FlushMetrics" })),
        (
            "PUT",
            "/actions",
            json!({ "action_type": "SendCtrlAltDel" }),
        ),
    ] {
        assert_eq!(
            vmm.refuse(method, path, &body),
            "The requested operation is not supported before starting the microVM.",
            "{method} {path}"
        );
    }
}
