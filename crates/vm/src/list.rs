//! Which VMs a host has, from what is on disk and which locks are held: nothing has to
//! be remembered by anybody, and nobody has to be asked.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fc_errors::chains;

use crate::dir::VmDir;
use crate::ident::InvalidIdentifier;
use crate::lock::{COPY_INTERVAL, LockError, StartLock};
use crate::process::ProcessId;
use crate::state::{self, Sockets, State, StateError, UndoError};

/// How long the lock of a shim that is dead may seem to be held: a process that its launcher is just starting has a
/// copy of it until its program runs, on a busy host for a while.
const COPY_BOUND: Duration = Duration::from_secs(10);

/// A VM's directory and what can be told from it.
#[derive(Debug)]
pub struct Vm {
    /// The directory; it names the namespace and the VM.
    pub dir: VmDir,
    /// Whether the VM has a shim.
    pub shim: ShimState,
    /// What the VM uses; `None` in a directory whose starter did not get so far, or whose shim
    /// is just removing it.
    pub record: Result<Option<State>, StateError>,
}

/// Whether a VM has a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShimState {
    /// This process holds the VM's lock.
    Alive(ProcessId),
    /// Somebody is starting the shim, or cleaning up after it, at this moment.
    Changing,
    /// None: what is there was left by one that is dead. [`clean_up`] removes it.
    Dead,
}

/// Why VMs cannot be looked for.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The directory of all VMs cannot be read.
    #[error("Cannot read the VMs' directory {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace or the VM id is no identifier.
    #[error("Invalid VM")]
    Identifier(#[from] InvalidIdentifier),
    /// A VM's lock cannot be asked.
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl Vm {
    /// The shim's process, if there is one.
    #[must_use]
    pub fn shim(&self) -> Option<ProcessId> {
        match self.shim {
            ShimState::Alive(shim) => Some(shim),
            ShimState::Changing | ShimState::Dead => None,
        }
    }

    /// Where the shim serves, or served.
    #[must_use]
    pub fn sockets(&self) -> Option<&Sockets> {
        self.record.as_ref().ok()?.as_ref()?.sockets.as_ref()
    }

    /// ttrpc address of the VM's containerd.
    #[must_use]
    pub fn containerd_ttrpc(&self) -> Option<&Path> {
        self.record
            .as_ref()
            .ok()?
            .as_ref()?
            .containerd_ttrpc
            .as_deref()
    }

    /// The VMM, if it was started. It can have ended meanwhile.
    #[must_use]
    pub fn vmm(&self) -> Option<ProcessId> {
        self.record.as_ref().ok()?.as_ref()?.vmm
    }

    /// Whether nothing but leftovers is there.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.shim == ShimState::Dead
    }

    /// Looks at a VM's directory; `None` when it is not there.
    fn look(dir: VmDir) -> Result<Option<Self>, LockError> {
        let lock = match StartLock::look(&dir) {
            Err(error) if error.is_missing() => return Ok(None),
            other => other?,
        };
        let shim = match &lock {
            None => ShimState::Changing,
            Some(lock) if !lock.shim_lock_held()? => ShimState::Dead,
            // Its process may end between the two looks; the lock is then free the next time.
            Some(lock) => lock
                .holder()
                .and_then(ProcessId::of)
                .map_or(ShimState::Changing, ShimState::Alive),
        };
        let record = State::load(&dir);
        Ok(Some(Self { dir, shim, record }))
    }
}

/// Every VM with a directory in `base` (config's `shim_base_dir`), dead ones too, by
/// namespace and id. Without `base` there is no VM. What is no directory or is named otherwise is not a VM's; one
/// whose lock cannot be asked is logged and left out, so that it hides no other.
///
/// # Errors
/// When `base` cannot be read.
pub fn list(base: &Path) -> Result<Vec<Vm>, ListError> {
    let error = |source| ListError::Read {
        path: base.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(base) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(error)?,
    };
    let mut vms = Vec::new();
    for entry in entries {
        let entry = entry.map_err(error)?;
        let name = entry.file_name();
        let Some((namespace, vm_id)) = name.to_str().and_then(|name| name.split_once('#')) else {
            continue;
        };
        let Ok(dir) = VmDir::new(base, namespace, vm_id) else {
            continue;
        };
        // A FIFO would keep us waiting. What cannot be asked for its type went away just now.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match Vm::look(dir) {
            // It may go away while we look.
            Ok(vm) => vms.extend(vm),
            Err(error) => {
                tracing::warn!(error = fc_errors::chain(&error), "A VM is not listed")
            }
        }
    }
    vms.sort_by(|a, b| (a.dir.namespace(), a.dir.vm_id()).cmp(&(b.dir.namespace(), b.dir.vm_id())));
    Ok(vms)
}

/// The VM of that name, dead or alive; `None` when it has no directory.
///
/// # Errors
/// When a name is no identifier or the VM's lock cannot be read.
pub fn find(base: &Path, namespace: &str, vm_id: &str) -> Result<Option<Vm>, ListError> {
    Ok(Vm::look(VmDir::new(base, namespace, vm_id)?)?)
}

/// What cleaning up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanUp {
    /// The VM has no directory.
    Nothing,
    /// The VM has a shim, and was left alone.
    Alive,
    /// What a dead shim left is gone.
    Done,
}

/// Why something of a dead VM is still there.
#[derive(Debug, thiserror::Error)]
pub enum CleanUpError {
    /// The VM's lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Everything that could not be undone; the rest was.
    #[error("Cannot clean up after the VM's shim: {}", chains(.0))]
    Undo(Vec<UndoError>),
}

/// What [`bury`] did.
#[derive(Debug)]
pub struct Burial {
    /// What [`clean_up`] answers.
    pub outcome: Result<CleanUp, CleanUpError>,
    /// Whether this call took the last trace of a VM that had a VMM. Of all who try only one gets that answer,
    /// so it is for that one to tell containerd that the VM is no more.
    pub ended_vm: bool,
}

/// Undoes what a VM's dead shim left: its VMM, sockets and directory. A VM with a shim is
/// left alone, so that this may be called for any VM at any time.
///
/// Blocks: for seconds when the VMM still has to end.
///
/// # Errors
/// See [`CleanUpError`].
pub fn clean_up(dir: &VmDir) -> Result<CleanUp, CleanUpError> {
    bury(dir).outcome
}

/// The same, for those who tell containerd about it. Blocks as [`clean_up`] does.
#[must_use]
pub fn bury(dir: &VmDir) -> Burial {
    let mut ended_vm = false;
    let outcome = under_lock(dir, || {
        let had_vmm = State::had_vmm(dir);
        let errors = state::undo(dir);
        // While the record is there, the next one finds it.
        ended_vm = had_vmm && !State::had_vmm(dir);
        errors
    });
    Burial { outcome, ended_vm }
}

/// Runs `undo` if the VM has a directory and no shim.
fn under_lock(dir: &VmDir, undo: impl FnOnce() -> Vec<UndoError>) -> Result<CleanUp, CleanUpError> {
    let Some(start) = StartLock::take_existing(dir)? else {
        return Ok(CleanUp::Nothing);
    };
    if has_shim(&start)? {
        return Ok(CleanUp::Alive);
    }
    let errors = undo();
    if errors.is_empty() {
        Ok(CleanUp::Done)
    } else {
        Err(CleanUpError::Undo(errors))
    }
}

/// Whether the VM has a shim: somebody holds its lock and lives.
fn has_shim(start: &StartLock) -> Result<bool, LockError> {
    let begin = Instant::now();
    while start.try_shim_lock()?.is_none() {
        let holder = start.holder().and_then(ProcessId::of);
        if holder.is_some_and(ProcessId::is_alive) || begin.elapsed() > COPY_BOUND {
            return Ok(true);
        }
        std::thread::sleep(COPY_INTERVAL);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{ShimLock, write_holder};

    /// What the kernel does for a shim that ends; its lock's copies are not this test's to wait for.
    fn end(lock: &ShimLock) {
        rustix::fs::flock(lock.file(), rustix::fs::FlockOperation::Unlock).unwrap();
    }

    fn vm_dir(base: &Path, vm_id: &str) -> VmDir {
        let dir = VmDir::new(base, "ns", vm_id).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        dir
    }

    #[test]
    fn the_living_the_dead_and_the_broken() {
        let base = tempfile::tempdir().unwrap();
        assert!(list(&base.path().join("none")).unwrap().is_empty());
        std::fs::create_dir(base.path().join("no-vm")).unwrap();
        std::fs::write(base.path().join("ns#file"), "").unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            base.path().join("ns#fifo"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        // A lock that cannot be opened.
        let foreign = vm_dir(base.path(), "foreign");
        std::os::unix::fs::symlink(crate::dir::LOCK, foreign.join(crate::dir::LOCK)).unwrap();

        let alive = vm_dir(base.path(), "b-alive");
        let start = StartLock::take(&alive).unwrap();
        let lock = start.try_shim_lock().unwrap().unwrap();
        write_holder(lock.file(), std::process::id()).unwrap();
        drop(start);
        let mut state = State::new(&alive);
        state.sockets = Some(Sockets {
            task: "/s/t".into(),
            control: "/s/t-fccontrol".into(),
        });
        state.store(&alive).unwrap();

        let broken = vm_dir(base.path(), "a-broken");
        std::fs::write(broken.join(crate::dir::STATE), "{").unwrap();
        let starting = vm_dir(base.path(), "c-starting");
        let starter = StartLock::take(&starting).unwrap();

        let vms = list(base.path()).unwrap();
        let seen: Vec<_> = vms.iter().map(|vm| (vm.dir.vm_id(), vm.shim)).collect();
        assert_eq!(
            seen,
            [
                ("a-broken", ShimState::Dead),
                ("b-alive", ShimState::Alive(ProcessId::current().unwrap())),
                ("c-starting", ShimState::Changing),
            ]
        );
        assert!(vms[0].record.is_err());
        let sockets = vms[1].sockets().unwrap();
        assert_eq!(sockets.control, Path::new("/s/t-fccontrol"));

        assert_eq!(clean_up(&alive).unwrap(), CleanUp::Alive);
        assert!(matches!(
            clean_up(&broken),
            Err(CleanUpError::Undo(errors)) if matches!(errors[..], [UndoError::State(_)])
        ));
        assert_eq!(clean_up(&broken).unwrap(), CleanUp::Nothing);
        end(&lock);
        drop(starter);
        assert_eq!(clean_up(&starting).unwrap(), CleanUp::Done);
        assert_eq!(clean_up(&alive).unwrap(), CleanUp::Done);
        assert!(find(base.path(), "ns", "b-alive").unwrap().is_none());
        assert!(base.path().join("no-vm").exists());
    }

    #[test]
    fn the_end_of_a_vm_is_news_for_one() {
        let base = tempfile::tempdir().unwrap();
        let without = vm_dir(base.path(), "never-ran");
        State::new(&without).store(&without).unwrap();
        assert!(!bury(&without).ended_vm);

        let dir = vm_dir(base.path(), "ran");
        let mut vmm = std::process::Command::new("true").spawn().unwrap();
        let state = State {
            vmm: ProcessId::of(vmm.id()),
            ..State::new(&dir)
        };
        vmm.wait().unwrap();
        state.store(&dir).unwrap();
        let shim = StartLock::take(&dir).unwrap();
        let lock = shim.try_shim_lock().unwrap().unwrap();
        write_holder(lock.file(), std::process::id()).unwrap();
        drop(shim);
        assert!(!bury(&dir).ended_vm, "it has a shim");
        end(&lock);
        let burial = bury(&dir);
        assert_eq!(burial.outcome.unwrap(), CleanUp::Done);
        assert!(burial.ended_vm);
        assert!(!bury(&dir).ended_vm, "somebody knows already");
    }
}
