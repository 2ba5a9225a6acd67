//! The program without a guest: command line, exit codes, API before the start.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{SOCKET, Vmm};

#[test]
fn version_in_firecrackers_format() {
    let output = Vmm::command().arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("Firecracker v1.15."));
    assert!(lines.next().unwrap().starts_with("firecracker-tcg v"));
    assert!(output.status.success());
}

#[test]
fn exit_codes() {
    let code = |args: &[&str]| {
        Vmm::command()
            .args(args)
            .output()
            .unwrap()
            .status
            .code()
            .unwrap()
    };
    assert_eq!(code(&["--nonsense"]), 153);
    assert_eq!(code(&["--no-api"]), 153);
    assert_eq!(code(&["--level", "loud"]), 152);
    assert_eq!(code(&["--api-sock", "/nonexistent/sock"]), 1);
}

#[test]
fn the_socket_must_be_new_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let mut vmm = Vmm::start(directory.path());
    let second = Vmm::command()
        .args(["--api-sock", SOCKET])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("Check that it is not already used."));
    vmm.kill();
    assert!(directory.path().join(SOCKET).exists());
}

#[test]
fn configuration_calls() {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(directory.path());
    let (status, version) = vmm.request("GET", "/version", "");
    assert_eq!(status, 200);
    assert!(
        version["firecracker_version"]
            .as_str()
            .unwrap()
            .starts_with("1.15.")
    );

    vmm.ok(
        "PUT",
        "/machine-config",
        &json!({ "vcpu_count": 2, "mem_size_mib": 256 }),
    );
    vmm.ok("PATCH", "/machine-config", &json!({ "smt": true }));
    let (_, machine) = vmm.request("GET", "/machine-config", "");
    assert_eq!(
        machine,
        json!({
            "vcpu_count": 2, "mem_size_mib": 256, "smt": true, "track_dirty_pages": false, "huge_pages": "None",
        })
    );

    vmm.ok(
        "PUT",
        "/vsock",
        &json!({ "guest_cid": 3, "uds_path": "v.sock" }),
    );
    assert!(directory.path().join("v.sock").exists());
    vmm.ok(
        "PUT",
        "/vsock",
        &json!({ "guest_cid": 4, "uds_path": "w.sock" }),
    );
    assert!(!directory.path().join("v.sock").exists());
    fs::write(directory.path().join("taken"), "").unwrap();
    let fault = vmm.fault(
        "PUT",
        "/vsock",
        &json!({ "guest_cid": 3, "uds_path": "taken" }),
    );
    assert!(
        fault.contains("Error binding to the host-side Unix socket: Address"),
        "{fault}"
    );

    vmm.ok("PUT", "/metrics", &json!({ "metrics_path": "metrics" }));
    let fault = vmm.fault("PUT", "/metrics", &json!({ "metrics_path": "other" }));
    assert!(fault.contains("already initialized"), "{fault}");
    for path in ["/cpu-config", "/pmem/a", "/snapshot/create"] {
        let fault = vmm.fault("PUT", path, &json!({ "a": 1 }));
        assert!(
            fault.starts_with("The requested operation is not supported: "),
            "{fault}"
        );
    }
    let (status, answer) = vmm.request("PUT", "/logger", &" ".repeat(60_000));
    assert_eq!(status, 400);
    let answer = answer.as_str().unwrap();
    assert!(
        answer.contains("with size 60000 is larger than the limit of 51200"),
        "{answer}"
    );
    assert_eq!(vmm.request("GET", "/", "").0, 200);
}

/// What no call without QEMU takes, however busy the machine is.
const HANGS: Duration = Duration::from_secs(5);

/// Clients give up early: QEMU must not be started before it is needed.
#[test]
fn configuration_calls_are_fast() {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(directory.path());
    fs::write(directory.path().join("file"), [0; 4096]).unwrap();
    let drive = json!({ "drive_id": "a", "path_on_host": "file", "is_root_device": false, "is_read_only": false });
    for (method, path, body) in [
        (
            "PUT",
            "/machine-config",
            json!({ "vcpu_count": 2, "mem_size_mib": 4096 }),
        ),
        (
            "PUT",
            "/boot-source",
            json!({ "kernel_image_path": "file", "initrd_path": "file" }),
        ),
        ("PUT", "/drives/a", drive),
        (
            "PUT",
            "/vsock",
            json!({ "guest_cid": 3, "uds_path": "v.sock" }),
        ),
        (
            "PUT",
            "/balloon",
            json!({ "amount_mib": 1, "deflate_on_oom": true }),
        ),
        ("PUT", "/entropy", json!({})),
        ("PUT", "/mmds", json!({ "a": 1 })),
        ("GET", "/vm/config", json!(null)),
    ] {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        // The machine may be busy with something else, but not each time.
        let fastest = (0..5).map(|_| {
            let start = Instant::now();
            let (status, answer) = vmm.request(method, path, &body);
            assert!(status < 300, "{method} {path}: {answer}");
            start.elapsed()
        });
        let fastest = fastest.min().unwrap();
        assert!(fastest < HANGS, "{method} {path}: {fastest:?}");
    }
    assert_eq!(vmm.qemu(), None);
}

#[test]
fn a_start_that_cannot_work_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("kernel");
    fs::write(&kernel, "#!/bin/sh\n").unwrap();
    let boot = json!({ "kernel_image_path": "kernel" });
    let start = json!({ "action_type": "InstanceStart" });

    let mut vmm = Vmm::start_with(directory.path(), |command| {
        command
            .env("PATH", "/nonexistent")
            .env_remove("FIRECRACKER_TCG_QEMU");
    });
    vmm.ok("PUT", "/boot-source", &boot);
    let fault = vmm.fault("PUT", "/actions", &start);
    assert!(
        fault.contains("neither an ELF vmlinux nor a bzImage"),
        "{fault}"
    );
    let mut elf = b"\x7fELF\x02".to_vec();
    elf.resize(64, 0);
    elf[18] = 62;
    fs::write(&kernel, &elf).unwrap();
    let fault = vmm.fault("PUT", "/actions", &start);
    assert!(fault.contains("install QEMU 10 or newer"), "{fault}");
    vmm.kill();
    fs::remove_file(directory.path().join(SOCKET)).unwrap();

    // A QEMU that fails tells its own reason, and the VM can be started again.
    let fake = directory.path().join("qemu");
    fc_test_host::write_program(
        &fake,
        "#!/bin/sh\necho qemu-system-x86_64: out of cheese >&2; exit 1\n",
    );
    let vmm = Vmm::start_with(directory.path(), |command| {
        command.env("FIRECRACKER_TCG_QEMU", &fake);
    });
    vmm.ok("PUT", "/boot-source", &boot);
    vmm.ok(
        "PUT",
        "/vsock",
        &json!({ "guest_cid": 3, "uds_path": "v.sock" }),
    );
    for _ in 0..2 {
        let fault = vmm.fault("PUT", "/actions", &start);
        assert_eq!(
            fault,
            "Start microvm error: QEMU ended (exit status: 1): out of cheese"
        );
    }
    assert_eq!(vmm.request("GET", "/", "").1["state"], "Not started");
}
