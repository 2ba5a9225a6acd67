//! Files that are made once and then used by every VM of the host.
//!
//! An entry is one file. It appears by rename when it is complete, is stamped
//! with a fixed modification time, and never changes afterwards: another time
//! means that somebody altered it. Whoever uses an entry holds a shared flock on
//! it; whoever makes or removes one holds an exclusive flock on `<entry>.lock`.
//! A process killed at any instruction leaves at most `<entry>.lock` and
//! `<entry>.<random>.tmp`, which the next maker of any entry removes.
//!
//! An entry's access time says when it was last asked for: when the directory
//! outgrows its limit, the longest unused go first (`upkeep`). One that is in use
//! stays. Should a user have been killed while its VM lives on, the VM keeps
//! the file open and does not notice that its name is gone.

mod digest;
mod lock;
mod upkeep;

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fc_host_file::HostFileError;
use rustix::fs::{FlockOperation, Timestamps, flock, futimens};

use crate::erofs;
use crate::image::Image;
use lock::{LOCK, Lock};
pub use upkeep::{CacheEntry, EntryKind, ImageCache, Integrity};

/// Modification time of every complete entry, since the epoch: no real one is so old.
const STAMP: Duration = Duration::from_secs(1);
/// End of the names of images.
const IMAGE: &str = ".erofs";

/// End of the names of unfinished files and directories.
pub(crate) const TEMPORARY: &str = ".tmp";

/// A directory of shared files; see the module's description.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    mount_point: PathBuf,
    limit: u64,
}

impl Cache {
    /// Opens the cache in `dir`, which is made when missing.
    pub(crate) fn open(dir: &Path) -> Result<Cache, CacheError> {
        let mount_point = dir.join("merge");
        // A jailed VMM opens images by name without being root; only root lists them.
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o711);
        builder
            .create(&mount_point)
            .map_err(|error| CacheError::Io("make", mount_point.clone(), error))?;
        Ok(Cache {
            dir: dir.into(),
            mount_point,
            limit: u64::MAX,
        })
    }

    /// Lets the directory grow to `bytes`, more only while all of it is in use.
    pub(crate) fn limited(self, bytes: u64) -> Cache {
        Cache {
            limit: bytes,
            ..self
        }
    }

    /// An empty directory to mount something on, in one's own mount namespace.
    pub(crate) fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The image called `key`. If there is none, or it was altered, `build`
    /// writes it to the path it gets, while others who want the same wait.
    pub(crate) fn image<E: From<CacheError>>(
        &self,
        key: &str,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Image, E> {
        let name = format!("{key}{IMAGE}");
        let file = self.entry(&name, is_whole_image, |path| {
            build(path)?;
            digest::record(path);
            Ok::<(), E>(())
        })?;
        Ok(Image::shared(&self.dir.join(name), file)?)
    }

    /// The entry called `name`, opened for reading and locked shared.
    /// `valid` recognises what `build` makes.
    pub(crate) fn entry<E: From<CacheError>>(
        &self,
        name: &str,
        valid: impl Fn(&File) -> io::Result<bool>,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<File, E> {
        let path = self.dir.join(name);
        if let Some(file) = open_valid(&path, &valid)? {
            return Ok(file);
        }
        let _lock = Lock::wait(&self.dir, name)?;
        if let Some(file) = open_valid(&path, &valid)? {
            return Ok(file);
        }
        self.sweep(name)?;
        let temporary = tempfile::Builder::new()
            .prefix(&format!("{name}."))
            .suffix(TEMPORARY)
            .tempfile_in(&self.dir)
            .map_err(|error| CacheError::Io("make a file in", self.dir.clone(), error))?;
        build(temporary.path())?;
        let finish = || -> io::Result<File> {
            let written = temporary.as_file();
            written.set_permissions(Permissions::from_mode(0o444))?;
            written.set_modified(SystemTime::UNIX_EPOCH + STAMP)?;
            // After a power failure an entry must be whole or absent.
            written.sync_all()?;
            let file = File::open(temporary.path())?;
            flock(&file, FlockOperation::NonBlockingLockShared)?;
            Ok(file)
        };
        let file = finish().map_err(|error| CacheError::Io("finish", path.clone(), error))?;
        if !valid(&file).map_err(|error| CacheError::Io("read", path.clone(), error))? {
            return Err(CacheError::Invalid(path).into());
        }
        temporary
            .persist(&path)
            .map_err(|failed| CacheError::Io("make", path, failed.error))?;
        if let Err(error) = upkeep::shrink(&self.dir, self.limit, Some(name)) {
            // No reason to refuse what was just made.
            tracing::warn!(%error, "the image cache cannot be made smaller");
        }
        Ok(file)
    }

    /// Removes what creators that were killed left behind. The caller holds the lock of entry `locked`.
    fn sweep(&self, locked: &str) -> Result<(), CacheError> {
        let failed = |error| CacheError::Io("clean", self.dir.clone(), error);
        for file in fs::read_dir(&self.dir).map_err(failed)? {
            let file = file.map_err(failed)?;
            let Ok(file_name) = file.file_name().into_string() else {
                continue;
            };
            // Taking the lock of somebody dead and letting go of it removes its file.
            if let Some(entry) = file_name.strip_suffix(LOCK)
                && entry != locked
            {
                Lock::try_take(&self.dir, entry)?;
                continue;
            }
            let Some((entry, _)) = file_name
                .strip_suffix(TEMPORARY)
                .and_then(|stem| stem.rsplit_once('.'))
            else {
                continue;
            };
            let _lock = if entry == locked {
                None
            } else {
                match Lock::try_take(&self.dir, entry)? {
                    Some(lock) => Some(lock),
                    None => continue,
                }
            };
            let removed = if file.file_type().map_err(failed)?.is_dir() {
                fs::remove_dir_all(file.path())
            } else {
                fs::remove_file(file.path())
            };
            // Its owner may have finished between the listing and the lock.
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Opens and locks the entry at `path`; `None` if there is none, it is being removed, or it was altered.
fn open_valid(
    path: &Path,
    valid: impl Fn(&File) -> io::Result<bool>,
) -> Result<Option<File>, CacheError> {
    let failed = |error| CacheError::Io("read", path.into(), error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    }
    if !is_at(&file, path).map_err(failed)? {
        return Ok(None);
    }
    let modified = file
        .metadata()
        .and_then(|metadata| metadata.modified())
        .map_err(failed)?;
    let stamped = modified == SystemTime::UNIX_EPOCH + STAMP;
    if stamped
        && digest::has_recorded_length(&file).map_err(failed)?
        && valid(&file).map_err(failed)?
    {
        touch(&file).map_err(failed)?;
        return Ok(Some(file));
    }
    tracing::warn!(image = %path.display(), "a cached image was altered; it will be made again");
    Ok(None)
}

/// Notes that the entry is used now, whatever the filesystem notes by itself. Its modification time stays.
fn touch(file: &File) -> io::Result<()> {
    let time = |tv_nsec| rustix::fs::Timespec { tv_sec: 0, tv_nsec };
    Ok(futimens(
        file,
        &Timestamps {
            last_access: time(rustix::fs::UTIME_NOW),
            last_modification: time(rustix::fs::UTIME_OMIT),
        },
    )?)
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_whole_image(file: &File) -> io::Result<bool> {
    let length = file.metadata()?.len();
    Ok(erofs::length(file)?.is_some_and(|needed| needed <= length))
}

/// Why an image could not be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A file could not be used; says what was tried with it.
    #[error("Cannot {0} {1:?}; check the image cache's directory and its space")]
    Io(&'static str, PathBuf, #[source] io::Error),
    /// A file cannot be had for a VM.
    #[error(transparent)]
    File(#[from] HostFileError),
    /// What was made is not what it should be.
    #[error(
        "The image made for {0:?} is not a whole EROFS image; mkfs.erofs wrote something unexpected"
    )]
    Invalid(PathBuf),
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
