//! A jail with nothing but what `--print-jail-paths` tells.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Guest, Vmm};

#[test]
fn a_jail_needs_no_more_than_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let Some(_guest) = Guest::make(root) else {
        return;
    };
    // A jail without /proc: such an initrd needs no copy.
    let initrd = root.join("initrd");
    let mut padded = fs::read(&initrd).unwrap();
    padded.resize(padded.len().next_multiple_of(4096), 0);
    fs::write(&initrd, padded).unwrap();

    let told = Vmm::command().arg("--print-jail-paths").output().unwrap();
    assert!(
        told.status.success(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    for path in told["read_only_paths"].as_array().unwrap() {
        let path = path.as_str().unwrap();
        fs::create_dir_all(inside(path).parent().unwrap()).unwrap();
        fs::copy(path, inside(path)).unwrap();
    }
    assert_eq!(told["devices"], json!(["/dev/null", "/dev/net/tun"]));
    fs::create_dir_all(root.join("dev")).unwrap();
    let made = Command::new("mknod")
        .args(["dev/null", "c", "1", "3"])
        .current_dir(root)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("SKIPPED: a jail needs root, to make its /dev/null");
        return;
    }

    let program = root.join("firecracker-tcg");
    fs::copy(Vmm::command().get_program(), &program).unwrap();
    let qemu = told["read_only_paths"][0].as_str().unwrap();
    let mut vmm = Vmm::start_in(root, jailed(root, qemu));
    let boot = json!({
        "kernel_image_path": "/kernel", "initrd_path": "/initrd", "boot_args": crate::ARGS,
    });
    vmm.ok("PUT", "/boot-source", &boot);
    vmm.action("InstanceStart");
    vmm.wait_line("READY");
    vmm.shell("reboot -f >/dev/null 2>&1 &");
    assert_eq!(vmm.wait().code(), Some(0), "{}", vmm.log());
}

/// The program as a jailer starts it: in another root directory, with next to nothing in its environment.
fn jailed(root: &Path, qemu: &str) -> Command {
    let mut command = Command::new("chroot");
    command
        .arg(root)
        .arg("/firecracker-tcg")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("FIRECRACKER_TCG_QEMU", qemu);
    command
}
