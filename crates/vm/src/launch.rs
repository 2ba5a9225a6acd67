//! Starting the shim of a VM: lock, sockets, process.

use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use fc_errors::chains;
use fc_proto::control::CreateVMRequest;

use crate::address;
use crate::dir::VmDir;
use crate::ident::InvalidIdentifier;
use crate::lock::{COPY_INTERVAL, LockError, ShimLock, StartLock};
use crate::process::ProcessId;
use crate::spawn;
use crate::state::{self, Sockets, State, StateError, UndoError};

/// File descriptor of the task socket in a shim.
pub const TASK_FD: RawFd = 3;
/// File descriptor of the control socket in a shim.
pub const CONTROL_FD: RawFd = 4;
/// File descriptor of the shim lock in a shim.
pub const LOCK_FD: RawFd = 5;
/// Tells the shim its VM's id.
pub const VM_ID_ENV: &str = "FIRECRACKER_VM_ID";
/// Tells the shim the number of [`CONTROL_FD`].
pub const CONTROL_FD_ENV: &str = "FCCONTROL_SOCKET_FD";
/// Tells the shim the number of [`LOCK_FD`].
pub const LOCK_FD_ENV: &str = "FIRECRACKER_LOCK_FD";

/// How long a shim that is ending may take until its VM id is free again.
const ENDING_SHIM_BOUND: Duration = Duration::from_secs(30);

/// What is needed to start a shim.
#[derive(Debug)]
pub struct Launch {
    /// Config's `shim_base_dir`.
    pub base: PathBuf,
    /// containerd namespace.
    pub namespace: String,
    /// Id of the VM.
    pub vm_id: String,
    /// containerd's gRPC address, a path. Whoever listens there gets an OOM score one below the shim's.
    pub containerd_address: String,
    /// containerd's ttrpc address, a path.
    pub ttrpc_address: String,
    /// The shim's executable.
    pub program: PathBuf,
    /// The runtime's configuration file; `None`: the one that the environment names.
    pub config: Option<PathBuf>,
    /// Where the shim's log goes.
    pub log: ShimLog,
    /// Whether the shim logs at debug level.
    pub debug: bool,
    /// The VM to create at once; `None` leaves that to a later CreateVM call.
    pub request: Option<CreateVMRequest>,
}

/// What a shim's stderr, its log, is.
#[derive(Debug)]
pub enum ShimLog {
    /// Nothing.
    Discard,
    /// A file or FIFO, which exists. Opened for both directions: that never waits for a reader of a
    /// FIFO, and the shim never fails to write for want of one.
    File(PathBuf),
    /// A FIFO that is made for it in the VM's directory ([`crate::dir::SHIM_LOG`]), opened likewise: whoever
    /// wants to read it can, at any time.
    Fifo,
    /// A descriptor, such as the writing end of a pipe. The shim gets a copy.
    Fd(OwnedFd),
}

/// A shim that serves, or will as soon as it is scheduled: its sockets take connections already.
#[derive(Debug)]
pub struct Launched {
    /// Path of the task socket.
    pub task_socket: PathBuf,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// False when the VM had a shim already (AlreadyExists, in the control API's words).
    pub new: bool,
    /// The shim's process.
    pub shim: ProcessId,
    /// The same as a child of the caller, if it is new. A caller that lives on has to reap it:
    /// [`Child::wait`] after [`ProcessId::ended`].
    pub child: Option<Child>,
    /// The reading end of a new shim's [`ShimLog::Fifo`], non-blocking. Nothing the shim says is missed in it,
    /// and it ends with the shim.
    pub log: Option<File>,
}

/// Why a VM's shim could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A name is no identifier.
    #[error("Invalid VM")]
    Identifier(#[from] InvalidIdentifier),
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The record of the VM's resources.
    #[error(transparent)]
    State(#[from] StateError),
    /// What a former shim of this VM left could not be removed.
    #[error("The VM's former shim left something that cannot be removed: {}", chains(.0))]
    Leftovers(Vec<UndoError>),
    /// The VM's former shim holds its lock but answers no more.
    #[error("The shim of VM {vm_id:?} does not answer and does not end (process {pid:?})")]
    Stuck {
        /// Id of the VM.
        vm_id: String,
        /// The shim's process id, if known.
        pid: Option<u32>,
    },
    /// A socket could not be bound.
    #[error("Cannot bind the shim's socket {}", path.display())]
    Bind {
        /// Path of the socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The shim's process could not be prepared or started.
    #[error("Cannot start the VM's shim {}", program.display())]
    Spawn {
        /// The executable.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Starts the shim of a VM, or finds the one that runs.
///
/// The shim's working directory is the VM's directory; it leads its own session
/// and has its sockets and its lock as fixed file descriptors. On error nothing is left. A caller that is
/// killed at any point leaves either a shim that serves, or what [`crate::list::clean_up`]
/// and the next start of the VM clear.
///
/// Blocks: for milliseconds, and for seconds when a former shim of the VM is just ending.
///
/// # Errors
/// See [`LaunchError`].
pub fn launch(launch: &Launch) -> Result<Launched, LaunchError> {
    let dir = VmDir::new(&launch.base, &launch.namespace, &launch.vm_id)?;
    let task_socket =
        address::task_socket(&launch.containerd_address, &launch.namespace, &launch.vm_id);
    let control_socket = address::control_socket(&task_socket);
    let (shim, child, log) = match lock_or_find(&dir, &task_socket)? {
        Found::Shim(shim) => (shim, None, None),
        Found::Locks(_start_lock, lock) => {
            let sockets = Sockets {
                task: task_socket.clone(),
                control: control_socket.clone(),
            };
            match start(launch, &dir, sockets, &lock) {
                Ok((shim, child, log)) => (shim, Some(child), log),
                Err(error) => {
                    // The first error is the one to report; what cannot be undone now is found by the
                    // next starter.
                    let _ = state::undo(&dir);
                    return Err(error);
                }
            }
        }
    };
    Ok(Launched {
        task_socket,
        control_socket,
        new: child.is_some(),
        shim,
        child,
        log,
    })
}

/// What a starter finds.
enum Found {
    /// No shim, and no leftovers any more: both locks.
    Locks(StartLock, ShimLock),
    /// A shim that takes connections.
    Shim(ProcessId),
}

fn start(
    launch: &Launch,
    dir: &VmDir,
    sockets: Sockets,
    lock: &ShimLock,
) -> Result<(ProcessId, Child, Option<File>), LaunchError> {
    let state = State {
        sockets: Some(sockets.clone()),
        containerd_ttrpc: Some(launch.ttrpc_address.clone().into()),
        ..State::new(dir)
    };
    state.store(dir)?;
    let listeners = [bind(&sockets.task)?, bind(&sockets.control)?];
    let (child, log) =
        spawn::spawn(launch, dir, &listeners, lock).map_err(|source| LaunchError::Spawn {
            program: launch.program.clone(),
            source,
        })?;
    // It is not reaped yet, so that its id is its own, dead or alive.
    match ProcessId::of(child.id()) {
        Some(shim) => Ok((shim, child, log)),
        None => Err(LaunchError::Spawn {
            program: launch.program.clone(),
            source: io::ErrorKind::NotFound.into(),
        }),
    }
}

/// Takes both locks of a VM without a shim, cleaned of leftovers, or finds its shim, which answers.
fn lock_or_find(dir: &VmDir, task_socket: &Path) -> Result<Found, LaunchError> {
    let begin = Instant::now();
    loop {
        let start = StartLock::take(dir)?;
        if let Some(lock) = start.try_shim_lock()? {
            if State::load(dir).ok() == Some(None) {
                return Ok(Found::Locks(start, lock));
            }
            let errors = state::undo(dir);
            if !errors.is_empty() {
                return Err(LaunchError::Leftovers(errors));
            }
            continue; // the locks went with the directory
        }
        let pid = start.holder();
        let shim = pid.and_then(ProcessId::of);
        let answers = UnixStream::connect(task_socket).is_ok();
        drop(start);
        let gone = match shim {
            Some(shim) if answers => return Ok(Found::Shim(shim)),
            // It holds the lock and has no socket any more: it is ending.
            Some(shim) => shim.wait(ENDING_SHIM_BOUND).unwrap_or(false),
            // No shim, but a copy of the lock in somebody's process that does not run its program yet;
            // nothing tells when it does, and that takes microseconds.
            None => {
                std::thread::sleep(COPY_INTERVAL);
                begin.elapsed() < ENDING_SHIM_BOUND
            }
        };
        if !gone {
            return Err(LaunchError::Stuck {
                vm_id: dir.vm_id().to_owned(),
                pid,
            });
        }
    }
}

fn bind(path: &Path) -> Result<UnixListener, LaunchError> {
    let bind = || {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|source| LaunchError::Bind {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
