//! A jail's directories and the two small file systems in them.
//!
//! `rootfs` is the VMM's `/`. The VMM has to make its sockets there, so it can write to it: to a tmpfs that is bounded
//! and not the host's disk, sticky and root's, so that the VMM cannot remove or replace what the host put there.
//! `drives` holds what is exposed while the VMM runs; it is shared with the container, where it is read-only.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

use crate::User;

/// The VMM's root directory, in the VM's.
pub(crate) const ROOT: &str = "rootfs";
/// What is exposed while the VMM runs.
pub(crate) const DRIVES: &str = "drives";
/// Private copies of files.
pub(crate) const COPIES: &str = "copies";
/// The OCI runtime's state.
pub(crate) const STATE: &str = "runc";
/// The container's configuration.
pub(crate) const CONFIG: &str = "config.json";

/// Sockets, stub drives and mount points; everything else is mounted onto them.
const ROOT_SIZE: &str = "size=4m,nr_inodes=4096";
/// Mount points and device nodes only.
const DRIVES_SIZE: &str = "size=1m,nr_inodes=4096";

/// A directory or mount that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("Cannot make the jail's directory {}", path.display())]
pub struct LayoutError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the jail's directories in the VM's directory `dir`.
pub(crate) fn make(dir: &Path, user: User) -> Result<(), LayoutError> {
    for name in [ROOT, DRIVES, COPIES, STATE] {
        let path = dir.join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| LayoutError { path, source })?;
    }
    let gid = user.gid();
    // Not nodev: a root drive that is a block device is a node in it.
    let root = format!("mode=1770,uid=0,gid={gid},{ROOT_SIZE}");
    tmpfs(dir, ROOT, &root, MountPropagationFlags::PRIVATE)?;
    let drives = format!("mode=0755,{DRIVES_SIZE}");
    tmpfs(dir, DRIVES, &drives, MountPropagationFlags::SHARED)?;
    let state = dir.join(STATE);
    // A mount of its own, to be detached with what is mounted below: runc 1.1 mounts its own program there for a moment,
    // and may be killed then.
    let made = mount_bind(&state, &state)
        .and_then(|()| mount_change(&state, MountPropagationFlags::PRIVATE));
    made.map_err(|errno| LayoutError {
        path: state,
        source: errno.into(),
    })
}

fn tmpfs(
    dir: &Path,
    name: &str,
    options: &str,
    propagation: MountPropagationFlags,
) -> Result<(), LayoutError> {
    let path = dir.join(name);
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    let make = || -> io::Result<()> {
        let options = std::ffi::CString::new(options)?;
        mount(
            "firecracker-jail",
            &path,
            "tmpfs",
            flags,
            options.as_c_str(),
        )?;
        // Out of the group of the file system around it, before it gets a group of its own.
        mount_change(&path, MountPropagationFlags::PRIVATE)?;
        Ok(mount_change(&path, propagation)?)
    };
    make().map_err(|source| LayoutError { path, source })
}

/// Removes everything that [`make`] made and what is below, whatever is still mounted. Goes on after errors.
pub(crate) fn remove(dir: &Path) -> Vec<(PathBuf, io::Error)> {
    let mut errors = Vec::new();
    for name in [ROOT, DRIVES, STATE] {
        let path = dir.join(name);
        // Lazily, with all that is mounted below: the last user may not have ended.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        loop {
            match unmount(&path, flags) {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
                Err(error) => {
                    errors.push((path, error.into()));
                    break;
                }
            }
        }
    }
    if !errors.is_empty() {
        // Files of the host are mounted there: nothing may be removed by walking down.
        return errors;
    }
    for name in [ROOT, DRIVES, COPIES, STATE] {
        let path = dir.join(name);
        errors.extend(failure(fs::remove_dir_all(&path), path));
    }
    let path = dir.join(CONFIG);
    errors.extend(failure(fs::remove_file(&path), path));
    errors
}

fn failure(result: io::Result<()>, path: PathBuf) -> Option<(PathBuf, io::Error)> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Some((path, error)),
        _ => None,
    }
}
