//! What the cache holds, and making it smaller.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::lock::{LOCK, Lock};
use super::{CacheError, IMAGE, TEMPORARY, digest};

/// The image cache for people and programs that look after it. Makes nothing, not even the directory.
#[derive(Debug, Clone)]
pub struct ImageCache {
    dir: PathBuf,
}

/// Kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A read-only image of an image's layers.
    Image,
    /// A formatted disk, of which containers get copies.
    DiskTemplate,
}

/// One file of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// Its name in the cache's directory.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes that it takes up on the disk.
    pub bytes: u64,
    /// When a container last asked for it.
    pub last_used: SystemTime,
    /// Whether a VM uses it now, or it is being made.
    pub in_use: bool,
}

/// Result of reading an entry and comparing it with its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integrity {
    /// It is what it was.
    Intact,
    /// It was altered. The next container that asks for it does not notice unless its length changed:
    /// remove it.
    Altered,
    /// Its checksum is not known: disk templates have none, nor have images on a filesystem without
    /// extended attributes.
    Unknown,
}

impl ImageCache {
    /// The cache in the directory `dir`, which need not exist.
    pub fn new(dir: impl Into<PathBuf>) -> ImageCache {
        ImageCache { dir: dir.into() }
    }

    /// Everything in it, in order of names. Unfinished files are not listed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn entries(&self) -> Result<Vec<CacheEntry>, CacheError> {
        entries(&self.dir)
    }

    /// Removes entries, the longest unused first, until what is left takes up at most `keep` bytes. Those in
    /// use stay. Gives what was removed.
    ///
    /// # Errors
    /// When the directory cannot be read or a file cannot be removed.
    pub fn prune(&self, keep: u64) -> Result<Vec<CacheEntry>, CacheError> {
        shrink(&self.dir, keep, None)
    }

    /// Removes one entry unless it is in use; whether it did.
    ///
    /// # Errors
    /// When there is no such entry or it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<bool, CacheError> {
        let entry = self.entry(name)?;
        remove_unused(&self.dir, &entry.name)
    }

    /// Reads an entry and compares it with the checksum noted when it was made.
    ///
    /// # Errors
    /// When there is no such entry or it cannot be read.
    pub fn verify(&self, name: &str) -> Result<Integrity, CacheError> {
        let path = self.dir.join(self.entry(name)?.name);
        let failed = |error| CacheError::Io("read", path.clone(), error);
        let file = File::open(&path).map_err(failed)?;
        Ok(match digest::is_intact(&file).map_err(failed)? {
            Some(true) => Integrity::Intact,
            Some(false) => Integrity::Altered,
            None => Integrity::Unknown,
        })
    }

    fn entry(&self, name: &str) -> Result<CacheEntry, CacheError> {
        let entries = self.entries()?;
        let found = entries.into_iter().find(|entry| entry.name == name);
        found.ok_or_else(|| {
            let error = io::ErrorKind::NotFound.into();
            CacheError::Io("find", self.dir.join(name), error)
        })
    }
}

/// Removes the longest unused entries except `keep` until at most `limit` bytes are left.
pub(super) fn shrink(
    dir: &Path,
    limit: u64,
    keep: Option<&str>,
) -> Result<Vec<CacheEntry>, CacheError> {
    let mut entries = entries(dir)?;
    let mut total: u64 = entries.iter().map(|entry| entry.bytes).sum();
    entries.sort_by_key(|entry| entry.last_used);
    let mut removed = Vec::new();
    for entry in entries {
        if total <= limit {
            break;
        }
        if keep == Some(entry.name.as_str()) || entry.in_use {
            continue;
        }
        if remove_unused(dir, &entry.name)? {
            total = total.saturating_sub(entry.bytes);
            tracing::info!(
                entry = entry.name,
                bytes = entry.bytes,
                "removed from the image cache"
            );
            removed.push(entry);
        }
    }
    if total > limit {
        tracing::warn!(
            total,
            limit,
            "everything in the image cache is in use; it stays too large"
        );
    }
    Ok(removed)
}

fn entries(dir: &Path) -> Result<Vec<CacheEntry>, CacheError> {
    let failed = |error| CacheError::Io("read", dir.to_owned(), error);
    let list = match fs::read_dir(dir) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut entries = Vec::new();
    for file in list {
        let file = file.map_err(failed)?;
        let Ok(name) = file.file_name().into_string() else {
            continue;
        };
        let kind = if name.ends_with(TEMPORARY) || name.ends_with(LOCK) {
            continue;
        } else if name.ends_with(IMAGE) {
            EntryKind::Image
        } else {
            EntryKind::DiskTemplate
        };
        let metadata = match file.metadata() {
            Ok(metadata) if metadata.is_file() => metadata,
            Ok(_) => continue,
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let used = u64::try_from(metadata.atime()).unwrap_or(0);
        entries.push(CacheEntry {
            kind,
            bytes: metadata.blocks().saturating_mul(512),
            last_used: SystemTime::UNIX_EPOCH + Duration::from_secs(used) + nanoseconds(&metadata),
            in_use: unused(dir, &name)?.is_none(),
            name,
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn nanoseconds(metadata: &fs::Metadata) -> Duration {
    Duration::from_nanos(u64::try_from(metadata.atime_nsec()).unwrap_or(0))
}

fn remove_unused(dir: &Path, name: &str) -> Result<bool, CacheError> {
    let Some(_held) = unused(dir, name)? else {
        return Ok(false);
    };
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(CacheError::Io("remove", path, error))
        }
        _ => Ok(true),
    }
}

/// An entry that nobody uses, or can use while this lives.
struct Unused {
    // Declared first, the file is closed first.
    file: File,
    _lock: Lock,
}

impl Drop for Unused {
    fn drop(&mut self) {
        // Closing it is not enough: a process that another thread is just starting has a copy until its program
        // runs, and who wants the entry meanwhile would make it again. This can only fail for a descriptor that is
        // none.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Keeps everybody from using the entry while the result lives; `None` if somebody does.
fn unused(dir: &Path, name: &str) -> Result<Option<Unused>, CacheError> {
    // First the right to make it: whoever finds the file locked waits for that, and looks again.
    let Some(lock) = Lock::try_take(dir, name)? else {
        return Ok(None);
    };
    let path = dir.join(name);
    let failed = |error| CacheError::Io("lock", path.clone(), error);
    let file = match File::open(&path) {
        Ok(file) => file,
        // Somebody else removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Unused { file, _lock: lock })),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(failed(error.into())),
    }
}
