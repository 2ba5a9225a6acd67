//! The parts of a VM's configuration: what each takes, refuses and reads back as.

use std::fs;
use std::path::Path;

use fc_conformance::vmm::Vmm;
use serde_json::{Value, json};

use crate::requests::JSON;
use crate::{OnBinary, file};

pub const CASES: &[(&str, OnBinary)] = &[
    ("configuration::machine_config", machine_config),
    ("configuration::cpu_template_that_is_none", cpu_template),
    ("configuration::boot_source", boot_source),
    ("configuration::drives", drives),
    (
        "configuration::drive_without_is_read_only_is_writable",
        drive_default,
    ),
    ("configuration::vsock", vsock),
    ("configuration::logger_and_metrics", logger_and_metrics),
    ("configuration::actions_and_states", actions_and_states),
];

fn machine_config(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let put = |body: Value| vmm.refuse("PUT", "/machine-config", &body);
    let processors = "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 \
                      or an even number if SMT is enabled.";
    assert_eq!(
        put(json!({ "vcpu_count": 0, "mem_size_mib": 128 })),
        processors
    );
    assert_eq!(
        put(json!({ "vcpu_count": 33, "mem_size_mib": 128 })),
        processors
    );
    assert_eq!(
        put(json!({ "vcpu_count": 3, "mem_size_mib": 128, "smt": true })),
        processors
    );
    let memory = "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page \
                  size.";
    assert_eq!(put(json!({ "vcpu_count": 1, "mem_size_mib": 0 })), memory);
    assert_eq!(
        put(json!({ "vcpu_count": 1, "mem_size_mib": 127, "huge_pages": "2M" })),
        memory
    );
    // Nothing of a refused request stays.
    assert_eq!(vmm.get("/machine-config")["mem_size_mib"], 128);
    assert_eq!(vmm.get("/machine-config")["vcpu_count"], 1);

    for body in [
        json!({ "vcpu_count": 32, "mem_size_mib": 128 }),
        json!({ "vcpu_count": 3, "mem_size_mib": 128, "smt": false }),
        json!({ "vcpu_count": 1, "mem_size_mib": 1, "smt": true, "huge_pages": "None" }),
        json!({ "vcpu_count": 2, "mem_size_mib": 128, "cpu_template": null }),
        json!({ "vcpu_count": 2, "mem_size_mib": 128, "cpu_template": "None" }),
    ] {
        vmm.accept("PUT", "/machine-config", &body);
    }
    vmm.accept("PATCH", "/machine-config", &json!({ "mem_size_mib": 256 }));
    let config = vmm.get("/machine-config");
    assert_eq!(
        (&config["vcpu_count"], &config["mem_size_mib"]),
        (&json!(2), &json!(256))
    );
}

fn cpu_template(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let body = json!({ "vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "T9" });
    let fault = vmm.refuse("PUT", "/machine-config", &body);
    assert!(
        fault.starts_with(&format!("{JSON}unknown variant `T9`")),
        "{fault}"
    );
}

fn boot_source(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    file(directory.path(), "kernel", 100, 0);
    let put = |body: Value| vmm.refuse("PUT", "/boot-source", &body);
    assert_eq!(
        put(json!({ "kernel_image_path": "missing" })),
        "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"
    );
    assert_eq!(
        put(json!({ "kernel_image_path": "kernel", "initrd_path": "missing" })),
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. \
         No such file or directory (os error 2)"
    );
    // Only their length is looked at, and a NUL ends them.
    assert_eq!(
        put(json!({ "kernel_image_path": "kernel", "boot_args": "a".repeat(2048) })),
        "Boot source error: The kernel command line is invalid: Invalid cmdline capacity provided."
    );
    for args in [
        "a".repeat(2047),
        "not\nprintable".into(),
        "umlaut ä".into(),
        "a\0b".into(),
    ] {
        let body = json!({ "kernel_image_path": "kernel", "boot_args": args });
        vmm.accept("PUT", "/boot-source", &body);
    }
    vmm.accept(
        "PUT",
        "/boot-source",
        &json!({ "kernel_image_path": "kernel" }),
    );
    let whole =
        json!({ "kernel_image_path": "kernel", "initrd_path": "kernel", "boot_args": "a=b c" });
    vmm.accept("PUT", "/boot-source", &whole);
    assert_eq!(vmm.get("/vm/config")["boot-source"], whole);
}

fn drives(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let put = |body: Value| vmm.refuse("PUT", "/drives/a", &body);
    let create = "Drive config error: Unable to create the virtio block device: ";
    assert_eq!(
        put(
            json!({ "drive_id": "a", "path_on_host": "missing", "is_root_device": false, "is_read_only": true })
        ),
        format!(
            "{create}Virtio backend error: Error manipulating the backing file: \
             No such file or directory (os error 2) missing"
        )
    );
    assert_eq!(
        put(json!({ "drive_id": "a", "is_root_device": false })),
        format!("{create}Invalid block config.")
    );
    // Any size will do: the guest sees whole sectors.
    for size in [0, 1, 512, 1000] {
        file(directory.path(), "disk", size, 0);
        let body = json!({ "drive_id": "a", "path_on_host": "disk", "is_root_device": false, "is_read_only": true });
        vmm.accept("PUT", "/drives/a", &body);
    }
    let root = |id: &str| json!({ "drive_id": id, "path_on_host": "disk", "is_root_device": true, "is_read_only": false });
    vmm.accept("PUT", "/drives/r", &root("r"));
    vmm.accept("PUT", "/drives/r", &root("r"));
    assert_eq!(
        vmm.refuse("PUT", "/drives/s", &root("s")),
        "Drive config error: A root block device already exists!"
    );
    let cached = json!({
        "drive_id": "c", "path_on_host": "disk", "is_root_device": false, "is_read_only": true,
        "cache_type": "Writeback", "io_engine": "Sync", "partuuid": "0eaa91a0-01", "rate_limiter": null,
    });
    vmm.accept("PUT", "/drives/c", &cached);
    let drives = vmm.get("/vm/config")["drives"].clone();
    let ids: Vec<_> = drives
        .as_array()
        .unwrap()
        .iter()
        .map(|drive| &drive["drive_id"])
        .collect();
    // The root drive first, the others in the order of their requests.
    assert_eq!(ids, ["r", "a", "c"]);
    assert_eq!(
        drives[2],
        json!({
            "drive_id": "c", "partuuid": "0eaa91a0-01", "is_root_device": false, "cache_type": "Writeback",
            "is_read_only": true, "path_on_host": "disk", "rate_limiter": null, "io_engine": "Sync", "socket": null,
        })
    );
    assert_eq!(drives[0]["cache_type"], "Unsafe");
}

fn drive_default(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    file(directory.path(), "disk", 512, 0);
    let body = json!({ "drive_id": "a", "path_on_host": "disk", "is_root_device": false });
    vmm.accept("PUT", "/drives/a", &body);
    assert_eq!(vmm.get("/vm/config")["drives"][0]["is_read_only"], false);
}

fn vsock(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let put = |path: &str| json!({ "guest_cid": 3, "uds_path": path });
    vmm.accept("PUT", "/vsock", &put("one.sock"));
    assert!(directory.path().join("one.sock").exists());
    // The last one counts, and the first one's socket goes.
    vmm.accept("PUT", "/vsock", &put("two.sock"));
    assert!(!directory.path().join("one.sock").exists());
    assert_eq!(vmm.get("/vm/config")["vsock"], put("two.sock"));
    file(directory.path(), "taken", 0, 0);
    let bind = "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: ";
    let fault = vmm.refuse("PUT", "/vsock", &put("taken"));
    // C libraries have two texts for this error.
    assert!(
        fault.starts_with(bind) && fault.ends_with("in use (os error 98)"),
        "{fault}"
    );
    let fault = vmm.refuse("PUT", "/vsock", &put("no/such/directory"));
    assert!(fault.starts_with(bind), "{fault}");
}

fn logger_and_metrics(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let missing = "no/such/directory";
    assert_eq!(
        vmm.refuse("PUT", "/logger", &json!({ "log_path": missing })),
        "Logger error: Failed to open target file: No such file or directory (os error 2)"
    );
    for level in ["Off", "Error", "warn", "Warning", "INFO", "debug", "Trace"] {
        let body = json!({ "log_path": "log", "level": level, "show_level": true, "show_log_origin": false });
        vmm.accept("PUT", "/logger", &body);
    }
    let metrics = "Metrics error: Cannot initialize the metrics system due to bad user input: ";
    assert_eq!(
        vmm.refuse("PUT", "/metrics", &json!({ "metrics_path": missing })),
        format!("{metrics}No such file or directory (os error 2)")
    );
    // Unlike in all other bodies, an unknown field passes.
    vmm.accept(
        "PUT",
        "/metrics",
        &json!({ "metrics_path": "metrics", "x": 1 }),
    );
    let fault = vmm.refuse("PUT", "/metrics", &json!({ "metrics_path": "other" }));
    assert!(fault.starts_with(metrics), "{fault}");
    assert!(fs::exists(directory.path().join("metrics")).unwrap());
}

fn actions_and_states(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    assert_eq!(
        vmm.refuse(
            "PUT",
            "/actions",
            &json!({ "action_type": "InstanceStart" })
        ),
        "Start microvm error: Cannot start microvm without kernel configuration."
    );
    // The kernel must be one; what exactly is wrong with it is said in many ways.
    file(directory.path(), "kernel", 4096, 7);
    vmm.accept(
        "PUT",
        "/boot-source",
        &json!({ "kernel_image_path": "kernel" }),
    );
    let fault = vmm.refuse(
        "PUT",
        "/actions",
        &json!({ "action_type": "InstanceStart" }),
    );
    assert!(fault.starts_with("Start microvm error: "), "{fault}");
    assert_eq!(vmm.state(), "Not started");
}
