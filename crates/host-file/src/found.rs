//! What is at a path, before it is opened.

use std::fs::{File, FileType};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::{Access, HostFile, HostFileError, Inner, lock};

/// A regular file or block device that was found at a path, and is not open yet. Opening it opens this one, whatever
/// is at the path by then.
#[derive(Debug)]
pub struct Found {
    path: PathBuf,
    /// A descriptor that only stands for the file (`O_PATH`): getting one has no effect on any kind of file.
    place: File,
    block_device: bool,
}

impl Found {
    /// Looks at the absolute path `path`; links are followed.
    ///
    /// # Errors
    /// When nothing is there, or something else than a regular file or block device.
    pub fn at(path: &Path) -> Result<Found, HostFileError> {
        if !path.is_absolute() {
            return Err(HostFileError::RelativePath(path.to_owned()));
        }
        let failed = |source| HostFileError::Open {
            path: path.to_owned(),
            access: Access::Read,
            source,
        };
        let place = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let place = File::from(place.map_err(|error| failed(error.into()))?);
        let kind = place.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(HostFileError::Kind {
                path: path.to_owned(),
                what: name(kind),
            });
        }
        Ok(Found {
            path: path.to_owned(),
            place,
            block_device: kind.is_block_device(),
        })
    }

    /// Whether it is a block device.
    #[must_use]
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Opens it for reading without a lock, for who takes a look and gives it to nobody.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn look(&self) -> Result<File, HostFileError> {
        self.reopen(Access::Read, OFlags::empty())
    }

    /// Opens and locks it; see [`HostFile::open`].
    ///
    /// # Errors
    /// When it cannot be opened, or is in use.
    pub fn open(self, access: Access) -> Result<HostFile, HostFileError> {
        let claim = if self.block_device && access == Access::Write {
            OFlags::EXCL
        } else {
            OFlags::empty()
        };
        let file = self.reopen(access, claim)?;
        lock::take(&self.path, &file, access)?;
        Ok(HostFile::from(Inner {
            path: self.path,
            file,
            access,
            block_device: self.block_device,
            temporary: false,
        }))
    }

    fn reopen(&self, access: Access, claim: OFlags) -> Result<File, HostFileError> {
        let mode = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
        };
        // Without waiting: for who has a lease on the file, or for a medium to be put in.
        let flags = mode | claim | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let place = format!("/proc/self/fd/{}", self.place.as_raw_fd());
        match lock::patiently(Errno::BUSY, || open(&place, flags, Mode::empty())) {
            Ok(file) => Ok(file.into()),
            Err(Errno::BUSY) if !claim.is_empty() => Err(HostFileError::Claimed(self.path.clone())),
            Err(error) => Err(HostFileError::Open {
                path: self.path.clone(),
                access,
                source: error.into(),
            }),
        }
    }
}

fn name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "something else"
    }
}
