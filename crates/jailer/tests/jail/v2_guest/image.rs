//! The guest's root image and initrd: this program, the OCI runtimes and the tools that the tests call, with their
//! libraries.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fc_test_host::write_program;

use crate::host::{Runtime, TEMPLATE};

/// What the guest boots from, besides the kernel.
pub struct Files {
    pub initrd: PathBuf,
    pub root: PathBuf,
    /// A second file system, which knows id-mapped mounts, too: an older kernel's tmpfs does not.
    pub shm: PathBuf,
}

/// Sizes of the file systems, of which little is used.
const ROOT_SIZE: &str = "1024M";
const SHM_SIZE: &str = "16M";

/// Programs of this host that busybox's applets of the same name cannot stand for.
const TOOLS: [&str; 3] = ["ip", "losetup", "timeout"];

/// Modules that the initrd loads, to find the root file system.
const DISK_MODULES: [&str; 4] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_mmio",
    "drivers/block/virtio_blk",
];

/// Modules that the tests need.
const TEST_MODULES: [&str; 1] = ["drivers/block/loop"];

/// The initrd's first program.
const FIND_ROOT: &str = r#"#!/busybox sh
/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /busybox insmod "$module"; done
/busybox mount -t ext4 /dev/vda /root || /busybox poweroff -f
/busybox mount --move /dev /root/dev
exec /busybox switch_root /root /init
"#;

/// The root file system's first program: mounts what a host has, and runs the tests.
const RUN_TESTS: &str = r#"#!/bin/busybox sh
export PATH=/usr/local/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/shm
mount -t ext4 /dev/vdc /dev/shm
for module in /modules/*; do insmod "$module"; done
ip link set lo up
if [ -e /usr/local/sbin/runc-newer ]; then export FC_RUNC_NEWER=/usr/local/sbin/runc-newer; fi
/jail --skip cgroup_v2:: --skip boot:: --skip cost:: --skip seccomp:: >/tests.log 2>&1
echo "The tests ended with status $?" >>/tests.log
cat /tests.log >/dev/vdb
sync
reboot -f
"#;

/// Makes both in `dir`.
pub fn make(dir: &Path) -> Result<Files, String> {
    let busybox = Path::new("/bin/busybox");
    let modules = modules()?;
    let initrd = dir.join("initrd.d");
    directories(&initrd, &["dev", "root", "modules"])?;
    copy(busybox, &initrd.join("busybox"))?;
    write_program(&initrd.join("init"), FIND_ROOT);
    copy_modules(&modules, &DISK_MODULES, &initrd)?;

    let root = dir.join("root.d");
    directories(&root, &["bin", "dev", "etc", "proc", "root", "run", "sys"])?;
    directories(&root, &["tmp", "modules", "usr/local/sbin"])?;
    copy(busybox, &root.join("bin/busybox"))?;
    for applet in output(Command::new(busybox).arg("--list"))?.lines() {
        // One of them is itself.
        let _ = symlink("busybox", root.join("bin").join(applet));
    }
    write_program(&root.join("init"), RUN_TESTS);
    copy_modules(&modules, &TEST_MODULES, &root)?;
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    copy(&this, &root.join("jail"))?;
    for file in [Path::new("/etc/os-release"), Path::new(TEMPLATE)] {
        // The program looks for it at the same path.
        copy(file, &beneath(&root, file))?;
    }
    let runtimes = Runtime::all();
    let runtimes = runtimes.iter().filter(|it| it.missing().is_none());
    let runtimes = runtimes.map(|it| (it.name(), it.file().to_owned()));
    let tools = TOOLS.iter().map(|name| (*name, PathBuf::from(name)));
    for (name, program) in runtimes.chain(tools) {
        let program = found(&program).ok_or_else(|| format!("{name} is not installed"))?;
        copy(&program, &root.join("usr/local/sbin").join(name))?;
        for library in libraries(&program)? {
            copy(&library, &beneath(&root, &library))?;
        }
    }

    let files = Files {
        initrd: dir.join("initrd"),
        root: dir.join("root"),
        shm: dir.join("shm"),
    };
    let archive = "find . | cpio --quiet --create --format=newc >../initrd";
    output(
        Command::new("sh")
            .args(["-c", archive])
            .current_dir(&initrd),
    )?;
    let mkfs = || Command::new("mkfs.ext4");
    output(
        mkfs()
            .args(["-q", "-d"])
            .args([&root, &files.root])
            .arg(ROOT_SIZE),
    )?;
    output(mkfs().arg("-q").arg(&files.shm).arg(SHM_SIZE))?;
    Ok(files)
}

/// The directory of the kernel's modules.
fn modules() -> Result<PathBuf, String> {
    let package = std::env::var_os("FC_TEST_KERNEL_DIR").ok_or("FC_TEST_KERNEL_DIR is not set")?;
    let releases = Path::new(&package).join("lib/modules");
    let mut releases = fs::read_dir(&releases).map_err(|error| error.to_string())?;
    let release = releases.next().and_then(Result::ok);
    Ok(release.ok_or("No modules")?.path().join("kernel"))
}

/// In the order in which they load.
fn copy_modules(from: &Path, names: &[&str], root: &Path) -> Result<(), String> {
    for (at, name) in names.iter().enumerate() {
        let module = from.join(format!("{name}.ko"));
        // What is no file is built into the kernel.
        if module.exists() {
            copy(&module, &root.join(format!("modules/{at}.ko")))?;
        }
    }
    Ok(())
}

/// The libraries of a program, as paths on this host.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, String> {
    let text = output(Command::new("ldd").arg(program))?;
    let words = text.lines().flat_map(str::split_whitespace);
    Ok(words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// A bare name as a file on `PATH`.
fn found(program: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let candidates = std::env::split_paths(&path).map(|directory| directory.join(program));
    let mut candidates = candidates.chain([Path::new("/sbin").join(program)]);
    candidates.find(|candidate| candidate.is_file())
}

fn beneath(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn directories(root: &Path, names: &[&str]) -> Result<(), String> {
    let mut made = names.iter().map(|name| fs::create_dir_all(root.join(name)));
    made.find_map(Result::err)
        .map_or(Ok(()), |error| Err(error.to_string()))
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let copied = to.parent().map_or(Ok(()), fs::create_dir_all);
    let copied = copied.and_then(|()| fs::copy(from, to));
    copied.map(drop).map_err(|error| {
        let (from, to) = (from.display(), to.display());
        format!("Cannot copy {from} to {to}: {error}")
    })
}

/// What a program prints.
fn output(command: &mut Command) -> Result<String, String> {
    let run = command.stdin(Stdio::null()).output();
    let run = run.map_err(|error| format!("{command:?}: {error}"))?;
    if run.status.success() {
        Ok(String::from_utf8_lossy(&run.stdout).into_owned())
    } else {
        let words = String::from_utf8_lossy(&run.stderr);
        Err(format!("{command:?}: {words}"))
    }
}
