//! What a VM uses on the host outside its directory, on disk, so that anybody
//! can undo it after the shim was killed.
//!
//! Everything else of a VM lies in its directory (sockets, FIFOs, stub drives,
//! containers' disks) and goes away with it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::dir::{STATE, VmDir};
use crate::process::ProcessId;

/// How long a killed VMM may take to vanish.
const KILL_BOUND: Duration = Duration::from_secs(15);

/// The record, `state.json` in the VM's directory. A resource is written here before it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// containerd namespace.
    pub namespace: String,
    /// Id of the VM.
    pub vm_id: String,
    /// The shim's sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<Sockets>,
    /// ttrpc address of the containerd that is told of the VM's end, a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containerd_ttrpc: Option<PathBuf>,
    /// Files outside of the VM's directory that were made for it (FIFOs that CreateVM names).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// The VMM, once it runs. (Before that is written the VMM cannot outlive the shim: it
    /// gets a signal when its parent dies.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<ProcessId>,
}

/// Where a VM's shim serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {
    /// The task API.
    pub task: PathBuf,
    /// The control API.
    pub control: PathBuf,
}

/// Why the record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {action} the VM's state file {}", path.display())]
pub struct StateError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// One step of an undo that failed.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// The VM's leftover VMM could not be ended.
    #[error("Cannot end the leftover VMM, process {pid}")]
    Vmm {
        /// Its process id.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// Something of its jail.
    #[error(transparent)]
    Jail(#[from] fc_jailer::UndoError),
    /// A file or directory could not be removed.
    #[error("Cannot remove {}", path.display())]
    Remove {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record of what to undo is unreadable; the directory was removed all the same.
    #[error("Some of the VM's resources are unknown")]
    State(#[from] StateError),
}

impl UndoError {
    /// Whether another try cannot do better: what was to be done is unknown. It keeps no directory.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::State(_) | Self::Jail(fc_jailer::UndoError::Record(_))
        )
    }
}

impl State {
    /// The record of a VM that uses nothing yet.
    #[must_use]
    pub fn new(dir: &VmDir) -> Self {
        Self {
            namespace: dir.namespace().to_owned(),
            vm_id: dir.vm_id().to_owned(),
            sockets: None,
            containerd_ttrpc: None,
            files: Vec::new(),
            vmm: None,
        }
    }

    /// Reads the record of `dir`; `None` when there is none.
    ///
    /// # Errors
    /// When it is there but unreadable.
    pub fn load(dir: &VmDir) -> Result<Option<Self>, StateError> {
        let path = dir.join(STATE);
        let error = |source| StateError {
            action: "read",
            path: path.clone(),
            source,
        };
        let text = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(error)?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| error(e.into()))
    }

    /// Whether the VM of `dir` has, or had, a VMM. Without a readable record nobody knows: no.
    #[must_use]
    pub fn had_vmm(dir: &VmDir) -> bool {
        Self::load(dir)
            .ok()
            .flatten()
            .is_some_and(|state| state.vmm.is_some())
    }

    /// Replaces the record of `dir` atomically.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, dir: &VmDir) -> Result<(), StateError> {
        let path = dir.join(STATE);
        let new = dir.join("state.json.new");
        let write = || {
            std::fs::write(&new, serde_json::to_vec(self)?)?;
            std::fs::rename(&new, &path)
        };
        write().map_err(|source| StateError {
            action: "write",
            path: path.clone(),
            source,
        })
    }
}

/// Undoes whatever a VM left: its jail, its VMM, its sockets, files, its directory. Goes on after
/// errors and returns them all. As long as another try may do what failed, the directory stays, with the records
/// that the try needs. Only for the holder of the VM's shim lock.
///
/// Blocks: for milliseconds, and for up to 30 s when a VMM or its jail does not end.
#[must_use]
pub fn undo(dir: &VmDir) -> Vec<UndoError> {
    // First, because the jail's mounts lie in the directory.
    let mut errors: Vec<UndoError> = fc_jailer::undo(dir.path())
        .into_iter()
        .map(UndoError::from)
        .collect();
    match State::load(dir) {
        Err(e) => errors.push(e.into()),
        Ok(None) => {}
        Ok(Some(state)) => {
            if let Some(vmm) = state.vmm
                && let Err(source) = vmm.kill(KILL_BOUND)
            {
                errors.push(UndoError::Vmm {
                    pid: vmm.pid,
                    source,
                });
            }
            let sockets = state.sockets.map(|s| [s.task, s.control]);
            for file in sockets.iter().flatten().chain(&state.files) {
                errors.extend(remove(file, std::fs::remove_file(file)));
            }
        }
    }
    // Without its record nobody could end or remove what is left; and below the directory a file of the host may
    // still be mounted.
    if errors.iter().all(UndoError::is_final) {
        errors.extend(remove(dir.path(), std::fs::remove_dir_all(dir.path())));
    }
    errors
}

fn remove(path: &Path, result: io::Result<()>) -> Option<UndoError> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Some(UndoError::Remove {
            path: path.to_owned(),
            source,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undo_removes_everything() {
        let base = tempfile::tempdir().unwrap();
        let dir = VmDir::new(base.path(), "ns", "vm").unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        assert_eq!(State::load(&dir).unwrap(), None);
        let socket = base.path().join("socket");
        std::fs::write(&socket, "").unwrap();
        let mut vmm = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let state = State {
            sockets: Some(Sockets {
                task: socket.clone(),
                control: base.path().join("never-made"),
            }),
            vmm: ProcessId::of(vmm.id()),
            ..State::new(&dir)
        };
        state.store(&dir).unwrap();
        assert_eq!(State::load(&dir).unwrap(), Some(state));
        let reaper = std::thread::spawn(move || vmm.wait().unwrap());
        assert!(undo(&dir).is_empty());
        assert!(!reaper.join().unwrap().success());
        assert!(!socket.exists() && !dir.path().exists());
    }

    #[test]
    fn what_has_to_be_undone_again_stays_on_record() {
        let base = tempfile::tempdir().unwrap();
        let dir = VmDir::new(base.path(), "ns", "vm").unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        // No file that can be removed, and none whose owner can be changed.
        let fifo = base.path().join("fifo");
        std::fs::create_dir(&fifo).unwrap();
        let blocked = base.path().join("blocked");
        std::fs::write(&blocked, "").unwrap();
        let owned = blocked.join("image");
        let state = State {
            files: vec![fifo.clone()],
            ..State::new(&dir)
        };
        state.store(&dir).unwrap();
        let jail = serde_json::json!({
            "runc": "/none",
            "container": "c",
            "owners": [{ "path": owned, "inode": 1, "uid": 0, "gid": 0 }],
        });
        std::fs::write(dir.join("jail.json"), jail.to_string()).unwrap();

        let errors = undo(&dir);
        assert!(
            matches!(
                &errors[..],
                [UndoError::Jail(_), UndoError::Remove { path, .. }] if *path == fifo
            ),
            "{errors:?}"
        );
        assert_eq!(State::load(&dir).unwrap(), Some(state));
        std::fs::remove_dir(&fifo).unwrap();
        assert!(matches!(undo(&dir)[..], [UndoError::Jail(_)]));
        std::fs::remove_file(&blocked).unwrap();
        assert!(undo(&dir).is_empty());
        assert!(!dir.path().exists());
    }

    #[test]
    fn undo_of_an_unreadable_record_says_so_and_goes_on() {
        let base = tempfile::tempdir().unwrap();
        let dir = VmDir::new(base.path(), "ns", "vm").unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        std::fs::write(dir.join(STATE), "{").unwrap();
        let errors = undo(&dir);
        assert!(matches!(errors[..], [UndoError::State(_)]));
        assert!(!dir.path().exists());
    }
}
