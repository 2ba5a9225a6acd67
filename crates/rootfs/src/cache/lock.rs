//! Who may make or remove an entry of the cache.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{CacheError, is_at};

/// End of the names of locks.
pub(super) const LOCK: &str = ".lock";

/// The right to make or remove an entry. The lock file goes away with it.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    pub(super) fn wait(dir: &Path, entry: &str) -> Result<Lock, CacheError> {
        loop {
            if let Some(lock) = Lock::take(dir, entry, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    pub(super) fn try_take(dir: &Path, entry: &str) -> Result<Option<Lock>, CacheError> {
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
