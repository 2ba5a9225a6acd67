//! Mounts images and devices, with a loop device only where the kernel needs one.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::mounts::Device;

/// Mounts the image file `image` at `target`, read-only.
///
/// Since Linux 6.12 EROFS is mounted from a file directly. Before, and for other
/// filesystems, mount(8) sets up a loop device that goes away with the mount.
pub(crate) fn mount_read_only(image: &Path, fstype: &str, target: &Path) -> io::Result<()> {
    match mount(image, target, fstype, MountFlags::RDONLY, None) {
        Err(Errno::NOTBLK) => with_program(image, fstype, "ro,loop", target),
        other => Ok(other?),
    }
}

/// Mounts a block device or image file at `target`, with its own options. Nothing is written to it.
///
/// A block device gets a loop device too: one that is read-only, as mount(8) makes it here. The option `ro` alone does
/// not keep a journal from being replayed.
pub(crate) fn mount_device(device: &Device, target: &Path) -> io::Result<()> {
    let mut options = String::from("ro,loop");
    for option in device.options.iter().filter(|option| *option != "rw") {
        options.push(',');
        options.push_str(option);
    }
    with_program(&device.source, &device.fstype, &options, target)
}

fn with_program(image: &Path, fstype: &str, options: &str, target: &Path) -> io::Result<()> {
    // mount(8) resolves a relative target against its own idea of the working directory.
    let target = fs::canonicalize(target)?;
    let end = Command::new("mount")
        .args(["-n", "-i", "-t", fstype, "-o", options])
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
    use fc_test_host::{can_mount_images, in_namespace, sh};

    use super::*;

    #[test]
    fn a_loop_device_serves_where_the_kernel_wants_one() {
        if !can_mount_images() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let [tree, image, target] = ["tree", "image", "target"].map(|name| dir.path().join(name));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(tree.join("file"), "content").unwrap();
        sh("mkfs.erofs --quiet image tree", dir.path());
        in_namespace(|| {
            with_program(&image, "erofs", "ro,loop", &target).unwrap();
            assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "content");
            let error = with_program(&tree, "erofs", "ro,loop", &target).unwrap_err();
            assert!(error.to_string().contains("mount"), "{error}");
        });
    }
}
