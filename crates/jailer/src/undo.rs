//! Undoes a jail, by whoever holds the VM's lock, after whatever was killed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::{CgroupError, Hierarchies};
use crate::layout;
use crate::loan::give_back;
use crate::oci_runtime::{OciRuntime, RuntimeError};
use crate::record::{self, Record, RecordError};

/// How long killed processes may take to end.
const KILL_BOUND: Duration = Duration::from_secs(5);
/// How long the OCI runtime may take to delete a container.
const DELETE_BOUND: Duration = Duration::from_secs(10);

/// A step of an undo that failed; the others were done.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// Which things have to be undone is unknown.
    #[error("Some of what the jail made is unknown")]
    Record(#[from] RecordError),
    /// The host's cgroups are unknown.
    #[error("Cannot clean up the jail's cgroup")]
    Cgroups(#[from] CgroupError),
    /// Processes of the jail live on.
    #[error("Cannot end the processes of the jail's cgroup {cgroup}")]
    Kill {
        /// The group.
        cgroup: String,
        /// Why.
        source: io::Error,
    },
    /// The container is still known to its runtime.
    #[error("Cannot delete the jail's container")]
    Container(#[from] RuntimeError),
    /// A directory, a cgroup or a mount stays.
    #[error("Cannot remove {}", path.display())]
    Remove {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file still has the jail's user as its owner.
    #[error("Cannot give {} back to {uid}:{gid}", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its former user.
        uid: u32,
        /// Its former group.
        gid: u32,
        /// Why.
        source: io::Error,
    },
}

/// Undoes whatever the jail of the VM with the directory `dir` left: processes, container, cgroups, mounts,
/// files' owners, directories. Nothing is done for a VM without a jail. May block for as long as a
/// killed process takes to end, and the runtime to delete its container: at most half a minute.
#[must_use]
pub fn undo(dir: &Path) -> Vec<UndoError> {
    undo_except(dir, None)
}

/// Like [`undo`]; the child `keep` is left for somebody else to reap.
pub(crate) fn undo_except(dir: &Path, keep: Option<u32>) -> Vec<UndoError> {
    let mut errors = Vec::new();
    match record::load(dir) {
        Ok(None) => {
            // A first record may have been about to be written.
            errors.extend(record::remove(dir).err().map(UndoError::from));
            return errors;
        }
        Ok(Some(record)) => {
            container(dir, &record, keep, &mut errors);
            removals(&mut errors, layout::remove(dir));
            for owner in record.owners.iter().rev() {
                errors.extend(give_back(owner).err());
            }
        }
        Err(error) => {
            errors.push(error.into());
            removals(&mut errors, layout::remove(dir));
        }
    }
    // With errors it stays, for another attempt.
    if errors.is_empty() {
        errors.extend(record::remove(dir).err().map(UndoError::from));
    }
    errors
}

fn container(dir: &Path, record: &Record, keep: Option<u32>, errors: &mut Vec<UndoError>) {
    let hierarchies = match Hierarchies::of_host() {
        Ok(hierarchies) => Some(hierarchies),
        Err(error) => {
            errors.push(error.into());
            None
        }
    };
    let cgroup = hierarchies.as_ref().zip(record.cgroup.as_ref());
    let ours = cgroup.filter(|(_, cgroup)| cgroup.claimed);
    let kill = |errors: &mut Vec<UndoError>| {
        if let Some((hierarchies, cgroup)) = ours
            && let Err(source) = hierarchies.kill(&cgroup.path, keep, KILL_BOUND)
        {
            errors.push(UndoError::Kill {
                cgroup: cgroup.path.clone(),
                source,
            });
        }
    };
    let runtime = OciRuntime::new(&record.runc, dir.join(layout::STATE), &record.container);
    // Killed before the deletion: runtimes look only every 100 ms whether what they killed has ended.
    kill(errors);
    errors.extend(runtime.settle().err().map(UndoError::from));
    kill(errors);
    errors.extend(runtime.delete(DELETE_BOUND).err().map(UndoError::from));
    match cgroup {
        Some((hierarchies, cgroup)) if cgroup.claimed => {
            removals(errors, hierarchies.remove(&cgroup.path, keep, KILL_BOUND));
        }
        Some((hierarchies, cgroup)) => hierarchies.remove_if_unused(&cgroup.path),
        None => {}
    }
}

fn removals(errors: &mut Vec<UndoError>, removals: Vec<(PathBuf, io::Error)>) {
    let removals = removals.into_iter();
    errors.extend(removals.map(|(path, source)| UndoError::Remove { path, source }));
}
