//! Starting the shim of a VM: lock, sockets, process.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fc_proto::control::CreateVMRequest;
use fc_proto::protobuf::Message;
use rustix::fs::MemfdFlags;
use rustix::io::fcntl_dupfd_cloexec;

use crate::address;
use crate::dir::VmDir;
use crate::ident::InvalidIdentifier;
use crate::lock::{LockError, ShimLock, StartLock};
use crate::process::ProcessId;
use crate::state::{self, State, StateError, UndoError};

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
const ENDING_SHIM_BOUND: Duration = Duration::from_secs(10);
/// Highest OOM score adjustment.
const OOM_SCORE_MAX: i32 = 1000;

/// What is needed to start a shim.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Config's `shim_base_dir`.
    pub base: PathBuf,
    /// containerd namespace.
    pub namespace: String,
    /// Id of the VM.
    pub vm_id: String,
    /// containerd's gRPC address, a path.
    pub containerd_address: String,
    /// containerd's ttrpc address, a path.
    pub ttrpc_address: String,
    /// The shim's executable.
    pub program: PathBuf,
    /// A file for the shim's stderr, its log; `None` discards it.
    pub log: Option<PathBuf>,
    /// Whether the shim logs at debug level.
    pub debug: bool,
    /// The VM to create at once; `None` leaves that to a later CreateVM call.
    pub request: Option<CreateVMRequest>,
}

/// A shim that serves, or will as soon as it is scheduled: its sockets take connections already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// Path of the task socket.
    pub task_socket: PathBuf,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// False when the VM had a shim already (AlreadyExists, in the control API's words).
    pub new: bool,
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
    #[error("The VM's former shim left something that cannot be removed")]
    Leftovers(#[source] UndoError),
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
/// and has its sockets and its lock as fixed file descriptors. On error nothing is left.
///
/// # Errors
/// See [`LaunchError`].
pub fn launch(launch: &Launch) -> Result<Launched, LaunchError> {
    let dir = VmDir::new(&launch.base, &launch.namespace, &launch.vm_id)?;
    let task_socket =
        address::task_socket(&launch.containerd_address, &launch.namespace, &launch.vm_id);
    let control_socket = address::control_socket(&task_socket);
    let launched = |new| Launched {
        task_socket: task_socket.clone(),
        control_socket: control_socket.clone(),
        new,
    };
    let Some((_start_lock, lock)) = lock_or_find(&dir, &task_socket)? else {
        return Ok(launched(false));
    };
    let state = State {
        namespace: launch.namespace.clone(),
        vm_id: launch.vm_id.clone(),
        sockets: vec![task_socket.clone(), control_socket.clone()],
        vmm: None,
    };
    let result = state.store(&dir).map_err(LaunchError::from).and_then(|()| {
        let sockets = [bind(&task_socket)?, bind(&control_socket)?];
        spawn(launch, &dir, sockets, lock)
    });
    if let Err(error) = result {
        // The first error is the one to report; what cannot be undone now is found by the next starter.
        let _ = state::undo(&dir);
        return Err(error);
    }
    Ok(launched(true))
}

/// Takes both locks of a VM without a shim, cleaned of leftovers; `None` when its shim answers.
fn lock_or_find(
    dir: &VmDir,
    task_socket: &Path,
) -> Result<Option<(StartLock, ShimLock)>, LaunchError> {
    loop {
        let start = StartLock::take(dir)?;
        if let Some(lock) = start.try_shim_lock()? {
            if State::load(dir).ok() == Some(None) {
                return Ok(Some((start, lock)));
            }
            if let Some(error) = state::undo(dir).into_iter().next() {
                return Err(LaunchError::Leftovers(error));
            }
            continue; // the locks went with the directory
        }
        if UnixStream::connect(task_socket).is_ok() {
            return Ok(None);
        }
        // It holds the lock and has no socket any more: it is ending.
        let holder = start.holder();
        drop(start);
        let gone = match holder.and_then(ProcessId::of) {
            None => holder.is_some(),
            Some(process) => process.wait(ENDING_SHIM_BOUND).unwrap_or(false),
        };
        if !gone {
            return Err(LaunchError::Stuck {
                vm_id: dir.vm_id().to_owned(),
                pid: holder,
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

fn spawn(
    launch: &Launch,
    dir: &VmDir,
    [task, control]: [UnixListener; 2],
    mut lock: ShimLock,
) -> Result<(), LaunchError> {
    let mut spawn = || {
        // Numbers above the targets, so that placing one does not close another, and the
        // targets are taken, so that nothing the standard library opens for itself gets them.
        let _reserved = reserve_targets()?;
        let fds = [
            (above_targets(&task)?, TASK_FD),
            (above_targets(&control)?, CONTROL_FD),
            (above_targets(lock.file())?, LOCK_FD),
        ];
        let mut command = command(launch, dir)?;
        let place = move || {
            rustix::process::setsid()?;
            for (from, to) in &fds {
                // SAFETY: `to` is one of the reserved numbers, which nobody else owns in the child.
                if unsafe { libc::dup2(from.as_raw_fd(), *to) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: setsid and dup2 are async-signal-safe and nothing is allocated.
        unsafe { command.pre_exec(place) };
        let child = command.spawn()?;
        lock.write_holder(child.id())?;
        adjust_oom_score(child.id());
        Ok(())
    };
    spawn().map_err(|source| LaunchError::Spawn {
        program: launch.program.clone(),
        source,
    })
}

fn command(launch: &Launch, dir: &VmDir) -> io::Result<Command> {
    let mut command = Command::new(&launch.program);
    command
        .args(["-namespace", &launch.namespace])
        .args(["-address", &launch.containerd_address])
        .args(launch.debug.then_some("-debug"))
        .env("TTRPC_ADDRESS", &launch.ttrpc_address)
        .env(VM_ID_ENV, &launch.vm_id)
        .env(CONTROL_FD_ENV, CONTROL_FD.to_string())
        .env(LOCK_FD_ENV, LOCK_FD.to_string())
        .current_dir(dir.path())
        .stdout(Stdio::null());
    command.stdin(match &launch.request {
        None => Stdio::null(),
        Some(request) => Stdio::from(request_file(request)?),
    });
    command.stderr(match &launch.log {
        None => Stdio::null(),
        // Both ends: opening never waits for a reader, and writing never fails for want of one.
        Some(log) => Stdio::from(
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(log)?,
        ),
    });
    Ok(command)
}

/// The request as a file of its own, at its start.
fn request_file(request: &CreateVMRequest) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(
        "create-vm-request",
        MemfdFlags::CLOEXEC,
    )?);
    file.write_all(&request.write_to_bytes().map_err(io::Error::other)?)?;
    io::Seek::rewind(&mut file)?;
    Ok(file)
}

fn above_targets(fd: &impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(fd, LOCK_FD + 1)?)
}

fn reserve_targets() -> io::Result<Vec<File>> {
    let mut reserved = Vec::new();
    loop {
        let file = File::open("/dev/null")?;
        let done = file.as_raw_fd() > LOCK_FD;
        reserved.push(file);
        if done {
            return Ok(reserved);
        }
    }
}

/// One above containerd's own score, so that containerd is not killed first. Without
/// effect where that is not permitted: the shim then keeps what it inherited.
fn adjust_oom_score(pid: u32) {
    let parent = rustix::process::getppid().map_or(1, |p| p.as_raw_nonzero().get());
    let score = std::fs::read_to_string(format!("/proc/{parent}/oom_score_adj"))
        .ok()
        .and_then(|s| s.trim().parse::<i32>().ok());
    if let Some(score) = score {
        let _ = std::fs::write(
            format!("/proc/{pid}/oom_score_adj"),
            (score + 1).min(OOM_SCORE_MAX).to_string(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for a shim: it reports its stdin, environment and descriptors, then waits for a byte.
    const STAND_IN: &str = r#"#!/bin/sh
{ echo "args $*"; echo "vm $FIRECRACKER_VM_ID $FCCONTROL_SOCKET_FD $FIRECRACKER_LOCK_FD"; echo "ttrpc $TTRPC_ADDRESS"
  echo "cwd $(pwd)"; echo "stdin $(wc -c)"
  for fd in 3 4 5; do readlink /proc/self/fd/$fd | sed 's/:.*//'; done; } > report.new
mv report.new report
exec sleep 60
"#;

    fn launch_in(base: &Path) -> Launch {
        let program = base.join("shim.sh");
        std::fs::write(&program, STAND_IN).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Launch {
            base: base.join("vms"),
            namespace: "ns".into(),
            vm_id: "v".repeat(76),
            containerd_address: base.join("c.sock").display().to_string(),
            ttrpc_address: "/run/c.ttrpc".into(),
            program,
            log: None,
            debug: false,
            request: Some(CreateVMRequest {
                VMID: "v".repeat(76),
                ..CreateVMRequest::default()
            }),
        }
    }

    #[test]
    fn second_starter_finds_the_first_and_a_killed_shim_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let config = launch_in(base.path());
        let first = launch(&config).unwrap();
        assert!(first.new);
        let again = launch(&config).unwrap();
        assert_eq!((again.new, &again.task_socket), (false, &first.task_socket));

        let dir = VmDir::new(&config.base, "ns", &config.vm_id).unwrap();
        let report = wait_for(&dir.join("report"));
        let expected = format!(
            "args -namespace ns -address {}\nvm {} 4 5\nttrpc /run/c.ttrpc\ncwd {}\nstdin 78\nsocket\nsocket\n{}\n",
            config.containerd_address,
            config.vm_id,
            dir.path().display(),
            dir.join(crate::dir::LOCK).display()
        );
        assert_eq!(report, expected);

        kill_holder(&dir);
        std::fs::write(dir.join("leftover"), "").unwrap();
        assert!(launch(&config).unwrap().new);
        assert!(!dir.join("leftover").exists());
        kill_holder(&dir);
        assert!(state::undo(&dir).is_empty());
        assert!(!first.task_socket.exists() && !first.control_socket.exists());
    }

    #[test]
    fn failed_launch_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let mut config = launch_in(base.path());
        config.program = base.path().join("missing");
        let error = launch(&config).unwrap_err();
        assert!(matches!(error, LaunchError::Spawn { .. }), "{error:?}");
        let dir = VmDir::new(&config.base, "ns", &config.vm_id).unwrap();
        assert!(!dir.path().exists());
        let socket = address::task_socket(&config.containerd_address, "ns", &config.vm_id);
        assert!(!socket.exists());
    }

    fn kill_holder(dir: &VmDir) {
        let start = StartLock::take(dir).unwrap();
        let shim = ProcessId::of(start.holder().unwrap()).unwrap();
        shim.kill(Duration::from_secs(10)).unwrap();
    }

    fn wait_for(path: &Path) -> String {
        for _ in 0..500 {
            if let Ok(text) = std::fs::read_to_string(path) {
                return text;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} did not appear", path.display());
    }
}
