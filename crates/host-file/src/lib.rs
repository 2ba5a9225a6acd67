//! A file of the host that a VM gets as a drive: checked, locked, and held open.
//!
//! Whoever may rename in a file's directory can put another file in its place at any time. So a path is followed
//! once: [`HostFile`] keeps what was found there, and everybody after that (who looks for a filesystem in it, the
//! jail, the VMM) gets it by the descriptor, never by the path again. The path only serves to tell people.
//!
//! # Locks
//! A file that a VM may write to has one user; one that is only read may have several. flock(2) keeps that up, on the
//! whole host and for whoever else uses it: exclusive for [`Access::Write`], shared for [`Access::Read`]. The
//! kernel gives a lock up with the last copy of its descriptor, so nothing stays locked when a process is killed.
//!
//! A block device that is to be written to is opened with `O_EXCL` too: one that the host has mounted, or made
//! part of another device, is refused, whichever of its nodes is used. Locks go by node.

#![forbid(unsafe_code)]

mod error;
mod found;
mod lock;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

pub use error::HostFileError;
pub use found::Found;

/// What a VM may do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it, as others may at the same time.
    Read,
    /// Read and write it, as nobody else may meanwhile.
    Write,
}

/// A regular file or block device that is open and locked. Clones are the same file; the last one gives
/// the lock up and, for a file that was [made](HostFile::create) for the VM, removes it.
#[derive(Debug, Clone)]
pub struct HostFile {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    access: Access,
    block_device: bool,
    temporary: bool,
}

impl HostFile {
    /// Opens and locks the file at the absolute path `path`. Links are followed. What is neither a regular file nor a
    /// block device is not opened, so it cannot do or wait for anything.
    ///
    /// Blocks for 1 s if somebody uses the file, and 2 s at most: a process that is just being started can have
    /// a copy of a descriptor that was closed everywhere else.
    ///
    /// # Errors
    /// See [`HostFileError`].
    pub fn open(path: &Path, access: Access) -> Result<HostFile, HostFileError> {
        Found::at(path)?.open(access)
    }

    /// Takes over `file`, a regular one that was opened at `path`, for reading: an entry of a cache, say. A shared lock that it
    /// has already is the one that it keeps.
    ///
    /// # Errors
    /// When somebody else has it for writing.
    pub fn shared(path: &Path, file: File) -> Result<HostFile, HostFileError> {
        lock::take(path, &file, Access::Read)?;
        Ok(HostFile::from(Inner {
            path: path.to_owned(),
            file,
            access: Access::Read,
            block_device: false,
            temporary: false,
        }))
    }

    /// Makes an empty file at `path` for one VM, which only its owner may read and write: locked for writing,
    /// removed with the last clone.
    ///
    /// # Errors
    /// When there is one already, or it cannot be made.
    pub fn create(path: &Path) -> Result<HostFile, HostFileError> {
        let failed = |source| HostFileError::Create {
            path: path.to_owned(),
            source,
        };
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(path).map_err(failed)?;
        // From here on it is removed, whatever fails.
        let made = HostFile::from(Inner {
            path: path.to_owned(),
            file,
            access: Access::Write,
            block_device: false,
            temporary: true,
        });
        lock::take(path, made.file(), Access::Write)?;
        Ok(made)
    }

    /// Where it was found, to tell people. Something else may be there by now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The open file, readable, and writable if it is open for [`Access::Write`].
    #[must_use]
    pub fn file(&self) -> &File {
        &self.inner.file
    }

    /// What it was opened and locked for.
    #[must_use]
    pub fn access(&self) -> Access {
        self.inner.access
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.inner.block_device
    }

    /// A path to this very file for another process of this one's user, for as long as a clone of this value lives:
    /// `/proc/<pid>/fd/<n>`. Whoever opens it opens the file anew, for whatever its mode allows.
    #[must_use]
    pub fn link(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.inner.file.as_raw_fd());
        format!("/proc/{pid}/fd/{fd}").into()
    }
}

impl From<Inner> for HostFile {
    fn from(inner: Inner) -> HostFile {
        HostFile {
            inner: Arc::new(inner),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.display(), %error, "a file made for a VM stays");
        }
        // Closing it is not enough: a process that this one is just starting has a copy until its program runs.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}
