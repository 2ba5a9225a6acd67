//! Copies a directory with all that is in it, except for what is mounted below and for sockets, which mean
//! nothing without the process behind them.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;

use crate::export::xattr;

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
#[error("Cannot copy {path:?}")]
pub(super) struct CopyError {
    path: PathBuf,
    #[source]
    error: io::Error,
}

/// Copies one directory.
#[derive(Debug, Default)]
pub(super) struct Copier {
    /// Copies of files with several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    /// Directories still to be copied.
    pending: Vec<(PathBuf, PathBuf)>,
    /// Copied ones, whose attributes come last: what is put into them changes their times.
    done: Vec<(PathBuf, PathBuf, Metadata)>,
}

impl Copier {
    /// Copies the directory `from` with its attributes to the directory `to`, which exists; needs /proc.
    pub(super) fn copy(mut self, from: &OwnedFd, to: &OwnedFd) -> Result<(), CopyError> {
        // The dot makes it the directory rather than the link in /proc.
        let path = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}/.", fd.as_raw_fd()));
        let (from, to) = (path(from), path(to));
        let device = because(&from, fs::symlink_metadata(&from))?.dev();
        self.pending.push((from, to));
        while let Some((from, to)) = self.pending.pop() {
            let metadata = because(&from, fs::symlink_metadata(&from))?;
            if metadata.dev() == device {
                for entry in because(&from, fs::read_dir(&from))? {
                    let name = because(&from, entry)?.file_name();
                    let (from, to) = (from.join(&name), to.join(&name));
                    because(&from, self.copy_entry(&from, &to))?;
                }
            }
            self.done.push((from, to, metadata));
        }
        for (from, to, metadata) in self.done.iter().rev() {
            because(from, copy_attributes(from, to, metadata))?;
        }
        Ok(())
    }

    fn copy_entry(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(from)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            fs::create_dir(to)?;
            self.pending.push((from.to_owned(), to.to_owned()));
            return Ok(());
        }
        if kind.is_socket() {
            eprintln!("volume-init: {}: a socket is not copied", from.display());
            return Ok(());
        }
        let inode = (metadata.dev(), metadata.ino());
        if let Some(first) = self.links.get(&inode) {
            return fs::hard_link(first, to);
        }
        if kind.is_file() {
            fs::copy(from, to)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(from)?, to)?;
        } else {
            let kind = SFlag::from_bits_truncate(metadata.mode());
            mknod(to, kind, Mode::empty(), metadata.rdev())?;
        }
        if metadata.nlink() > 1 {
            self.links.insert(inode, to.to_owned());
        }
        copy_attributes(from, to, &metadata)
    }
}

fn because<T>(path: &Path, result: io::Result<T>) -> Result<T, CopyError> {
    result.map_err(|error| CopyError {
        path: path.to_owned(),
        error,
    })
}

/// Owner, permissions, extended attributes and times.
fn copy_attributes(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if !metadata.is_symlink() {
        // After the owner, whose change clears set-id bits and capabilities.
        fs::set_permissions(to, metadata.permissions())?;
        copy_xattrs(from, to)?;
    }
    let accessed = TimeSpec::new(metadata.atime(), metadata.atime_nsec());
    let modified = TimeSpec::new(metadata.mtime(), metadata.mtime_nsec());
    let flags = UtimensatFlags::NoFollowSymlink;
    Ok(utimensat(AT_FDCWD, to, &accessed, &modified, flags)?)
}

fn copy_xattrs(from: &Path, to: &Path) -> io::Result<()> {
    let [from, to] =
        [from, to].map(|path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from));
    let (from, to) = (from?, to?);
    for name in xattr::list(&from)? {
        let value = xattr::get(&from, &name)?;
        let shown = String::from_utf8_lossy(&name).into_owned();
        let name = CString::new(name)?;
        let (start, length) = (value.as_ptr().cast(), value.len());
        // SAFETY: path and name end with zeros, and `value` has as many bytes as is said.
        let set = unsafe { libc::lsetxattr(to.as_ptr(), name.as_ptr(), start, length, 0) };
        match Errno::result(set) {
            Ok(_) => {}
            // A memory filesystem has no `user.` attributes before Linux 6.6.
            Err(Errno::EOPNOTSUPP) => {
                eprintln!(
                    "volume-init: {}: no attribute {shown}",
                    to.to_string_lossy()
                );
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
