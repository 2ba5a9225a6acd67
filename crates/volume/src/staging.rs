//! A filesystem in memory that no path leads to, in which an image's content is collected.
//!
//! It has a size limit that the kernel enforces, what is in it (secrets, perhaps) never touches a disk on
//! its way, and nothing of it is left when the process ends, however that happens.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The filesystem; it vanishes with this value.
#[derive(Debug)]
pub(crate) struct Staging {
    root: OwnedFd,
}

impl Staging {
    /// Room for `size` bytes, each file and directory counted in whole pages.
    pub(crate) fn new(size: u64) -> io::Result<Staging> {
        let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&tmpfs, "size", size.to_string())?;
        fsconfig_set_string(&tmpfs, "mode", "0755")?;
        fsconfig_create(&tmpfs)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let root = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(Staging { root })
    }

    /// Its root directory, for this process only. Nobody else can change what is below.
    pub(crate) fn path(&self) -> PathBuf {
        fd_path(&self.root)
    }

    /// Makes it visible at the directory `at`, which exists, to the program of `command` only, which can be
    /// run once.
    pub(crate) fn mount_for(&self, command: &mut Command, at: &Path) -> io::Result<()> {
        let at = std::ffi::CString::new(at.as_os_str().as_encoded_bytes())?;
        let root = self.root.try_clone()?;
        let enter = move || {
            // SAFETY: after fork there is one thread only, whose file descriptors stay as they are.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change(c"/", private)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            Ok(move_mount(root.as_fd(), c"", CWD, at.as_c_str(), flags)?)
        };
        // SAFETY: between fork and exec only unshare(2), mount(2) and move_mount(2) are called, with
        // arguments that exist already: async-signal-safe.
        unsafe {
            command.pre_exec(enter);
        }
        Ok(())
    }
}

/// The file behind a descriptor, by a path that only this process can use.
pub(crate) fn fd_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// An empty directory to mount on, removed with this value.
#[derive(Debug)]
pub(crate) struct MountPoint(PathBuf);

impl MountPoint {
    /// Makes the directory `path`.
    pub(crate) fn new(path: PathBuf) -> io::Result<MountPoint> {
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(MountPoint(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "an empty directory stays");
        }
    }
}
