//! `jail.json` in the VM's directory: what a jail made outside of that directory and cannot be found out again.
//!
//! It is written before a thing is made, so that anybody can undo everything, whoever was killed when.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// The record's file.
const FILE: &str = "jail.json";

/// What has to be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The OCI runtime, for deleting the container.
    pub(crate) runc: PathBuf,
    /// The container's name in the runtime's state directory.
    pub(crate) container: String,
    /// The control group, or the one that is just being made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup: Option<Cgroup>,
    /// Files whose owner was changed, with the owner to give back; oldest change first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) owners: Vec<Owner>,
}

/// A control group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    /// Its path in every hierarchy.
    pub(crate) path: String,
    /// Whether it is this VM's. While it is being made it may turn out to be another one's.
    pub(crate) claimed: bool,
}

/// A file's owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The file, by a path without symbolic links.
    pub(crate) path: PathBuf,
    /// The file system's device number (`st_dev`) and the file's number there, so that another file in its place
    /// is left alone.
    pub(crate) device: u64,
    /// See `device`.
    pub(crate) inode: u64,
    /// Former user id.
    pub(crate) uid: u32,
    /// Former group id.
    pub(crate) gid: u32,
    /// User id of the jail.
    pub(crate) lent_to: u32,
}

/// Why the record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {action} the jail's record {}", path.display())]
pub struct RecordError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The record of a VM that is being made or runs.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    path: PathBuf,
    record: Mutex<Record>,
}

impl Journal {
    /// Begins the record in the VM's directory.
    pub(crate) fn begin(dir: &Path, record: Record) -> Result<Self, RecordError> {
        let path = dir.join(FILE);
        store(&path, &record)?;
        Ok(Self {
            dir: dir.to_owned(),
            path,
            record: Mutex::new(record),
        })
    }

    /// Changes the record, on disk first.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), RecordError> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = record.clone();
        change(&mut new);
        if new != *record {
            store(&self.path, &new)?;
            *record = new;
        }
        Ok(())
    }

    /// The VM's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory with the directories of all VMs.
    pub(crate) fn base(&self) -> &Path {
        self.dir.parent().unwrap_or(&self.dir)
    }

    /// What it says now.
    pub(crate) fn record(&self) -> Record {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.clone()
    }
}

/// The record in the VM's directory; `None` when there is none.
pub(crate) fn load(dir: &Path) -> Result<Option<Record>, RecordError> {
    let path = dir.join(FILE);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other,
    };
    text.and_then(|text| Ok(serde_json::from_slice(&text)?))
        .map(Some)
        .map_err(|source| RecordError {
            action: "read",
            path,
            source,
        })
}

/// Forgets the record: everything is undone.
pub(crate) fn remove(dir: &Path) -> Result<(), RecordError> {
    let path = dir.join(FILE);
    for path in [new(&path), path] {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(RecordError {
                    action: "remove",
                    path,
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// What becomes the record when it is complete.
fn new(path: &Path) -> PathBuf {
    path.with_extension("json.new")
}

fn store(path: &Path, record: &Record) -> Result<(), RecordError> {
    let new = new(path);
    let write = || {
        fs::write(&new, serde_json::to_vec(record)?)?;
        fs::rename(&new, path)
    };
    write().map_err(|source| RecordError {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        let record = Record {
            runc: "runc".into(),
            container: "vm".into(),
            cgroup: None,
            owners: Vec::new(),
        };
        let journal = Journal::begin(dir.path(), record).unwrap();
        let cgroup = Cgroup {
            path: "/p/vm".into(),
            claimed: false,
        };
        journal
            .change(|record| record.cgroup = Some(cgroup.clone()))
            .unwrap();
        let loaded = load(dir.path()).unwrap().unwrap();
        assert_eq!(loaded, journal.record());
        assert_eq!(loaded.cgroup, Some(cgroup));
        remove(dir.path()).unwrap();
        remove(dir.path()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(load(dir.path()).is_err());
    }
}
