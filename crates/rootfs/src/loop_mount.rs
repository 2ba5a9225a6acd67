//! Mounts an image file, with a loop device only where the kernel needs one.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Mounts the image file `image` at `target`, read-only.
///
/// Since Linux 6.12 EROFS is mounted from a file directly. Before, and for other
/// filesystems, mount(8) sets up a loop device that goes away with the mount.
pub(crate) fn mount_read_only(image: &Path, fstype: &str, target: &Path) -> io::Result<()> {
    match mount(image, target, fstype, MountFlags::RDONLY, None) {
        Err(Errno::NOTBLK) => through_loop_device(image, fstype, target),
        other => Ok(other?),
    }
}

fn through_loop_device(image: &Path, fstype: &str, target: &Path) -> io::Result<()> {
    // mount(8) resolves a relative target against its own idea of the working directory.
    let target = fs::canonicalize(target)?;
    let end = Command::new("mount")
        .args(["-n", "-t", fstype, "-o", "loop,ro"])
        .args([image, &target])
        .stdin(Stdio::null())
        .output()?;
    if end.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&end.stderr).trim().to_owned();
    Err(io::Error::other(said))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    #[test]
    fn a_loop_device_serves_where_the_kernel_wants_one() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: mounting needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let [tree, image, target] = ["tree", "image", "target"].map(|name| dir.path().join(name));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(tree.join("file"), "content").unwrap();
        let mkfs = Command::new("mkfs.erofs")
            .arg("--quiet")
            .args([&image, &tree])
            .status();
        if !mkfs.is_ok_and(|status| status.success()) {
            println!("SKIPPED: mkfs.erofs is missing; install erofs-utils");
            return;
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: file descriptors stay shared, and this thread uses absolute paths.
                unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
                let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change("/", private).unwrap();
                through_loop_device(&image, "erofs", &target).unwrap();
                assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "content");
                let error = through_loop_device(&tree, "erofs", &target).unwrap_err();
                assert!(error.to_string().contains("mount"), "{error}");
            });
        });
    }
}
