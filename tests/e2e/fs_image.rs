//! File systems in files of the host, with content, and whether they are in order.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::fixture::finish;

/// The file systems that a container's writes can go to.
pub const WRITABLE: [&str; 3] = ["ext4", "xfs", "btrfs"];
/// The others.
pub const READ_ONLY: [&str; 2] = ["erofs", "squashfs"];

/// The programs that [`make`] runs, for a test's list of what it needs.
pub const MAKERS: [&str; 5] = [
    "mkfs.ext4",
    "mkfs.xfs",
    "mkfs.btrfs",
    "mkfs.erofs",
    "mksquashfs",
];

/// What a tree's shell finds.
const APPLETS: [&str; 18] = [
    "sh",
    "cat",
    "cmp",
    "cp",
    "echo",
    "grep",
    "head",
    "md5sum",
    "mkdir",
    "rm",
    "seq",
    "sha256sum",
    "sleep",
    "sync",
    "test",
    "touch",
    "tr",
    "yes",
];

/// A tree that a container can run in: a shell, the usual mount points, and `hello`, which has `text`.
pub fn tree(at: &Path, text: &str) {
    for dir in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(at.join(dir)).expect("a directory");
    }
    fs::copy("/bin/busybox", at.join("bin/busybox")).expect("busybox");
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", at.join("bin").join(applet)).expect("a link");
    }
    fs::write(at.join("hello"), text).expect("a file");
}

/// Makes `image` of the type, with what is in `tree`.
pub fn make(fstype: &str, tree: &Path, image: &Path) {
    let mut make = Command::new(format!("mkfs.{fstype}"));
    match fstype {
        "ext4" => {
            room(image, 32 << 20);
            make.args(["-q", "-F", "-d"]).arg(tree).arg(image);
        }
        "erofs" => {
            make.arg("--quiet").arg(image).arg(tree);
        }
        "squashfs" => {
            make = Command::new("mksquashfs");
            make.arg(tree).arg(image).args(["-quiet", "-no-progress"]);
        }
        "btrfs" => {
            room(image, 128 << 20);
            make.args(["-q", "--rootdir"]).arg(tree).arg(image);
        }
        "xfs" => {
            // It makes no smaller ones.
            room(image, 320 << 20);
            let prototype = image.with_extension("prototype");
            let text = format!("/\n0 0\nd--755 0 0\n{}$\n", prototype_of(tree));
            fs::write(&prototype, text).expect("a prototype");
            make.arg("-q").arg("-p").arg(prototype).arg(image);
        }
        other => panic!("no way to make {other}"),
    }
    make.stdin(Stdio::null());
    finish(make).expect(0);
}

fn room(image: &Path, size: u64) {
    let file = File::create(image).expect("a file");
    file.set_len(size).expect("room");
}

/// What is in `dir`, in mkfs.xfs(8)'s language for its option `-p`.
fn prototype_of(dir: &Path) -> String {
    let mut lines = String::new();
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.display();
        let kind = entry.file_type().expect("its type");
        lines += &if kind.is_dir() {
            format!("{name} d--755 0 0\n{}$\n", prototype_of(&path))
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).expect("a link");
            format!("{name} l--777 0 0 {}\n", target.display())
        } else {
            format!("{name} ---755 0 0 {}\n", path.display())
        };
    }
    lines
}

/// Fails unless the file system is clean as it is, without a repair or a journal to replay.
#[track_caller]
pub fn check(fstype: &str, image: &Path) {
    let mut check = match fstype {
        "ext4" => {
            let mut check = Command::new("e2fsck");
            check.args(["-f", "-n"]);
            check
        }
        "xfs" => {
            let mut check = Command::new("xfs_repair");
            check.arg("-n");
            check
        }
        "btrfs" => {
            let mut check = Command::new("btrfs");
            check.args(["check", "--readonly"]);
            check
        }
        other => panic!("no way to check {other}"),
    };
    check.arg(image);
    finish(check).expect(0);
}

/// The content of a file in an ext4 image.
#[track_caller]
pub fn read_ext4(image: &Path, file: &str) -> Vec<u8> {
    let mut debugfs = Command::new("debugfs");
    debugfs.arg("-R").arg(format!("cat {file}")).arg(image);
    finish(debugfs).expect(0).stdout
}

/// What sha256sum(1) prints of an image.
pub fn sha256(image: &Path) -> String {
    let mut sum = Command::new("sha256sum");
    sum.arg(image);
    finish(sum).expect(0).text()
}

/// A block device over a file of the host, until dropped.
pub struct Loop(PathBuf);

impl Loop {
    pub fn attach(file: &Path) -> Self {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).arg(file);
        let device = finish(losetup).expect(0).text();
        Self(PathBuf::from(device.trim()))
    }

    pub fn device(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The test's own failure is the one to see.
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.0)
            .output();
    }
}
