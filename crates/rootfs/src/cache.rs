//! Files that are made once and then used by every VM of the host.
//!
//! An entry is one file. It appears by rename when it is complete, is stamped
//! with a fixed modification time, and never changes afterwards: another time
//! means that somebody altered it. Whoever uses an entry holds a shared flock on
//! it; whoever makes or removes one holds an exclusive flock on `<entry>.lock`.
//! A process killed at any instruction leaves at most `<entry>.lock` and
//! `<entry>.<random>.tmp`, which the next maker of any entry removes.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use crate::erofs::{self, RootAttributes};

/// Modification time of every complete entry, since the epoch: no real one is so old.
const STAMP: Duration = Duration::from_secs(1);

/// End of the names of unfinished files and directories.
pub(crate) const TEMPORARY: &str = ".tmp";
const LOCK: &str = ".lock";

/// A directory of shared files; see the module's description.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    mount_point: PathBuf,
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
        })
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
        let name = format!("{key}.erofs");
        let file = self.entry(&name, is_whole_image, build)?;
        Ok(Image {
            path: self.dir.join(name),
            file,
            shared: true,
        })
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
    if stamped && valid(&file).map_err(failed)? {
        return Ok(Some(file));
    }
    tracing::warn!(image = %path.display(), "a cached image was altered; it will be made again");
    Ok(None)
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

/// The right to make or remove an entry. The lock file goes away with it.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn wait(dir: &Path, entry: &str) -> Result<Lock, CacheError> {
        loop {
            if let Some(lock) = Lock::take(dir, entry, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    fn try_take(dir: &Path, entry: &str) -> Result<Option<Lock>, CacheError> {
        Lock::take(dir, entry, FlockOperation::NonBlockingLockExclusive)
    }

    /// `None` if somebody else has it, or removed the file meanwhile.
    fn take(dir: &Path, entry: &str, how: FlockOperation) -> Result<Option<Lock>, CacheError> {
        let path = dir.join(format!("{entry}{LOCK}"));
        let attempt = || -> io::Result<Option<File>> {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            match flock(&file, how) {
                Ok(()) => Ok(is_at(&file, &path)?.then_some(file)),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        match attempt() {
            Ok(file) => Ok(file.map(|file| Lock { path, _file: file })),
            Err(error) => Err(CacheError::Io("lock", path, error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While still locked: whoever waits notices that the file is no longer there and starts again.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(lock = %self.path.display(), %error, "a lock file stays");
        }
    }
}

/// A read-only EROFS image. There is no way to write to it: attach it to
/// drives that were created read-only. Keep it for as long as a VM uses it.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    /// Of a shared image: locked shared, so that it is not removed from the cache.
    file: File,
    shared: bool,
}

impl Image {
    /// Makes an image at `path` that is nobody else's; it is removed with this value.
    pub(crate) fn private<E: From<CacheError>>(
        path: &Path,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Image, E> {
        let failed = |error| CacheError::Io("make", path.into(), error);
        let created = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(failed)?;
        let image = Image {
            path: path.into(),
            file: created,
            shared: false,
        };
        build(path)?;
        image
            .file
            .set_permissions(Permissions::from_mode(0o444))
            .map_err(failed)?;
        Ok(image)
    }

    /// The file on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether other VMs may use the same file; if not, it is removed when this value is dropped.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn root_attributes(&self) -> Result<RootAttributes, CacheError> {
        erofs::root_attributes(&self.file)
            .map_err(|error| CacheError::Io("read", self.path.clone(), error))?
            .ok_or_else(|| CacheError::Invalid(self.path.clone()))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.shared {
            return;
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(image = %self.path.display(), %error, "a container's image stays");
            }
            _ => {}
        }
    }
}

/// Why an image could not be made or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A file could not be used; says what was tried with it.
    #[error("Cannot {0} {1:?}; check the image cache's directory and its space")]
    Io(&'static str, PathBuf, #[source] io::Error),
    /// What was made is not what it should be.
    #[error(
        "The image made for {0:?} is not a whole EROFS image; mkfs.erofs wrote something unexpected"
    )]
    Invalid(PathBuf),
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
