//! A jail with nothing but what `--print-jail-paths` tells: another root directory without `/proc` and `/tmp`, an
//! unprivileged user, no capabilities, no privileges to gain, nothing to write to but the working directory and the
//! files that are the VM's own.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::{Value, json};

use crate::support::{Guest, Vmm};

/// User and group in the jail, of whom the machine knows nothing.
const USER: u32 = 61_234;

/// Its interface.
struct Tap(String);

impl Tap {
    fn new() -> Option<Self> {
        let name = format!("fctcgj{}", std::process::id());
        let made = Command::new("ip")
            .args(["tuntap", "add", &name, "mode", "tap"])
            .args(["user", &USER.to_string()])
            .status();
        made.is_ok_and(|status| status.success())
            .then_some(Self(name))
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["link", "del", &self.0]).status());
    }
}

#[test]
fn a_jail_needs_no_more_than_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let Some(_guest) = Guest::make(root) else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: a jail needs root, to make its devices and to change its user");
        return;
    }
    let Some(tap) = Tap::new() else {
        println!("SKIPPED: no tap device can be made with ip");
        return;
    };
    let told = show_what_is_told(root);
    for (name, content) in [("disk", b'd'), ("next", b'n'), ("image", b'i')] {
        fs::write(root.join(name), [content; 4096]).unwrap();
    }
    for name in ["disk", "next"] {
        chown(root.join(name), Some(USER), Some(USER)).unwrap();
    }
    let metrics = root.join("metrics");
    make_node(&metrics, FileType::Fifo, (0, 0));
    let mut metrics = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(metrics)
        .unwrap();
    chown(root, Some(USER), Some(USER)).unwrap();
    let before = names(root);

    let mut vmm = Vmm::start_in(root, jailed(root, &told));
    let boot = json!({
        "kernel_image_path": "/kernel", "initrd_path": "/initrd", "boot_args": crate::ARGS,
    });
    vmm.ok("PUT", "/boot-source", &boot);
    vmm.ok("PUT", "/metrics", &json!({ "metrics_path": "metrics" }));
    vmm.put_drive("rw", "disk", false, false);
    vmm.put_drive("ro", "image", false, true);
    let vsock = json!({ "guest_cid": 3, "uds_path": "firecracker.vsock" });
    vmm.ok("PUT", "/vsock", &vsock);
    vmm.ok("PUT", "/entropy", &json!({}));
    let balloon = json!({ "amount_mib": 0, "deflate_on_oom": false });
    vmm.ok("PUT", "/balloon", &balloon);
    let interface = json!({ "iface_id": "net", "host_dev_name": tap.0 });
    vmm.ok("PUT", "/network-interfaces/net", &interface);
    vmm.action("InstanceStart");
    vmm.wait_line("READY");

    is_confined(vmm.qemu().expect("QEMU runs"));
    assert_eq!(vmm.shell("head -c 2 /dev/vda; head -c 2 /dev/vdb"), "ddii");
    vmm.patch_drive("rw", "next");
    vmm.wait_line("[vda] new size: ");
    vmm.shell("printf written > /dev/vda; sync");
    vmm.ok("PATCH", "/vm", &json!({ "state": "Paused" }));
    vmm.ok("PATCH", "/vm", &json!({ "state": "Resumed" }));
    assert!(!vmm.log().contains("stand still"), "{}", vmm.log());
    vmm.shell("ip link set eth0 up");
    vmm.tell("reboot -f");
    assert_eq!(vmm.wait().code(), Some(0), "{}", vmm.log());

    assert!(fs::read(root.join("next")).unwrap().starts_with(b"written"));
    let mut lines = String::new();
    metrics.read_to_string(&mut lines).unwrap();
    assert!(lines.contains("\"put_api_requests\""), "{lines}");
    let made: Vec<_> = names(root).difference(&before).cloned().collect();
    assert_eq!(made, ["api.socket", "firecracker.vsock", "log"]);
}

/// Puts what a jail must show into `root`, and returns what was told about it.
fn show_what_is_told(root: &Path) -> Value {
    let told = Vmm::command().arg("--print-jail-paths").output().unwrap();
    let complaint = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{complaint}");
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    for path in told["read_only_paths"].as_array().unwrap() {
        let path = path.as_str().unwrap();
        fs::create_dir_all(inside(path).parent().unwrap()).unwrap();
        copy_program(Path::new(path), &inside(path));
    }
    assert_eq!(told["devices"], json!(["/dev/null", "/dev/net/tun"]));
    fs::create_dir_all(root.join("dev/net")).unwrap();
    make_node(&root.join("dev/null"), FileType::CharacterDevice, (1, 3));
    make_node(
        &root.join("dev/net/tun"),
        FileType::CharacterDevice,
        (10, 200),
    );
    copy_program(
        Path::new(Vmm::command().get_program()),
        &root.join("firecracker-tcg"),
    );
    told
}

/// Copies a program, by another process: what this one has open for writing, and a process that another test is just
/// starting with it, cannot be executed.
fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(copied.success(), "{}", from.display());
}

/// Makes a special file that everybody may write to.
fn make_node(path: &Path, kind: FileType, (major, minor): (u32, u32)) {
    mknodat(CWD, path, kind, Mode::RUSR, makedev(major, minor)).unwrap();
    // Whatever the umask says.
    fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    entries.map(name).collect()
}

/// The program as a jailer starts it.
fn jailed(root: &Path, told: &Value) -> Command {
    let mut command = Command::new("/firecracker-tcg");
    command.env_clear();
    for (name, value) in told["environment"].as_object().unwrap() {
        command.env(name, value.as_str().unwrap());
    }
    let root = root.to_owned();
    let enter = move || {
        rustix::process::chroot(&root)?;
        rustix::process::chdir("/")?;
        rustix::thread::set_no_new_privs(true)?;
        for capability in 0..64 {
            // SAFETY: this call takes numbers only; it refuses those that are no capability.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
        // SAFETY: these take numbers, and an empty list for which the pointer is not read.
        let changed = unsafe {
            libc::setgroups(0, std::ptr::null()) == 0
                && libc::setgid(USER) == 0
                && libc::setuid(USER) == 0
        };
        if changed {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    // SAFETY: `enter` makes system calls, and allocates at most a short path between fork and exec of a process whose
    // other threads never hold the allocator's lock across a fork: it is glibc's, which takes care of that.
    unsafe { command.pre_exec(enter) };
    command
}

/// The jail holds for QEMU too.
fn is_confined(qemu: u32) {
    let status = fs::read_to_string(format!("/proc/{qemu}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))
            .trim()
            .to_owned()
    };
    let ids = [USER; 4].map(|id| id.to_string()).join("\t");
    assert_eq!((field("Uid:"), field("Gid:")), (ids.clone(), ids));
    assert_eq!(field("CapEff:").trim_matches('0'), "");
    assert_eq!(field("CapBnd:").trim_matches('0'), "");
    assert_eq!(field("NoNewPrivs:"), "1");
    // QEMU's own filter.
    assert_eq!(field("Seccomp:"), "2");
}
