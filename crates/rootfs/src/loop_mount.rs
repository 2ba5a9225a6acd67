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
