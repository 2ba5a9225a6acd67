//! From a command to a VMM that answers.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use super::end::write_lines;
use super::process::Process;
use super::running::DROP_BOUND;
use super::{MINIMUM_VERSION, StartedVmm, Version, Vmm, VmmCommand, VmmEnd};
use crate::{ApiError, Client, readiness};

/// Time between two attempts to connect to a socket that was bound and is not listened on yet: nothing tells
/// when it is, and it takes microseconds.
const LISTEN_INTERVAL: Duration = Duration::from_millis(1);

/// Why a VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The VM's directory cannot be used.
    #[error("Cannot use the VM's directory {}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another VMM's socket is there, or was left there.
    #[error("The API socket {} exists already: another VMM runs there, or left it", socket.display())]
    SocketExists {
        /// The socket.
        socket: PathBuf,
    },
    /// The program does not run.
    #[error(
        "The VMM {} cannot be started: it {} (configuration key firecracker_binary_path)",
        binary.display(),
        spawn_problem(source)
    )]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The process that was said to run the program does not exist.
    #[error("The VMM {} (process {pid}) is gone already", binary.display())]
    Gone {
        /// The program.
        binary: PathBuf,
        /// The process' id.
        pid: u32,
        /// The system's error.
        source: io::Error,
    },
    /// The process started, and cannot be watched.
    #[error("Cannot watch the VMM's process")]
    Watch {
        /// The system's error.
        source: io::Error,
    },
    /// The process ended before its API answered.
    #[error("The VMM {} did not start: {end}", binary.display())]
    Exited {
        /// The program.
        binary: PathBuf,
        /// How it ended.
        end: VmmEnd,
    },
    /// The process runs, and its API does not answer.
    #[error("The VMM {} did not answer within {bound:?}{}", binary.display(), LastOutput(last_output))]
    NotReady {
        /// The program.
        binary: PathBuf,
        /// How long was waited.
        bound: Duration,
        /// The last lines of its output; oldest first.
        last_output: Vec<String>,
    },
    /// The API answers, and does not say which version it is.
    #[error("The VMM {} does not tell its version: it is not Firecracker, or much too old", binary.display())]
    Version {
        /// The program.
        binary: PathBuf,
        /// What went wrong.
        source: ApiError,
    },
    /// The VMM is older than what the runtime can use.
    #[error(
        "The VMM {} is too old: version {version:?}, while at least {MINIMUM_VERSION} is needed, the first that \
         shows its devices to kernels through ACPI (configuration key firecracker_binary_path)",
        binary.display()
    )]
    TooOld {
        /// The program.
        binary: PathBuf,
        /// What it says of itself.
        version: String,
    },
}

fn spawn_problem(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT) => "does not exist, or the interpreter that it names does not",
        Some(Errno::ACCESS | Errno::PERM) => "is not an executable file",
        Some(Errno::NOEXEC) => "is not a program for this machine",
        Some(Errno::TXTBSY) => "is just being written",
        _ => "was refused by the system",
    }
}

struct LastOutput<'a>(&'a [String]);

impl fmt::Display for LastOutput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_lines(f, "output", self.0)
    }
}

pub(super) async fn launch(command: VmmCommand) -> Result<Vmm, LaunchError> {
    let socket = command.socket();
    let unusable = |source| LaunchError::Directory {
        dir: command.dir.clone(),
        source,
    };
    // Watched before the process starts, so that the socket cannot be missed.
    let created = watch_directory(&command.dir).map_err(unusable)?;
    if socket.try_exists().map_err(unusable)? {
        return Err(LaunchError::SocketExists { socket });
    }
    let mut child = command.spawn().map_err(|source| LaunchError::Spawn {
        binary: command.binary.clone(),
        source,
    })?;
    // Not reaped yet, so that the id is still its own.
    let process = Process::open(child.id()).map_err(|source| {
        // It must not stay; the first error is the one to report.
        let _ = child.kill();
        let _ = child.wait();
        LaunchError::Watch { source }
    })?;
    let started = StartedVmm {
        binary: command.binary,
        pid: child.id(),
        api_socket: socket,
        stdout: child.stdout.take().map(OwnedFd::from),
        stderr: child.stderr.take().map(OwnedFd::from),
        log_output: command.log_output,
        ready_bound: command.ready_bound,
        output: command.output,
        log: command.log,
    };
    take_over(process, started, &created).await
}

pub(super) async fn attach(started: StartedVmm) -> Result<Vmm, LaunchError> {
    let process = Process::open(started.pid).map_err(|source| LaunchError::Gone {
        binary: started.binary.clone(),
        pid: started.pid,
        source,
    })?;
    let dir = started.api_socket.parent().unwrap_or(Path::new("/"));
    match watch_directory(dir) {
        Ok(created) => take_over(process, started, &created).await,
        Err(source) => {
            process.kill_and_reap(DROP_BOUND);
            Err(LaunchError::Directory {
                dir: dir.to_owned(),
                source,
            })
        }
    }
}

/// Makes a VMM of a process, once its API answers. `created` tells of files in the socket's directory.
async fn take_over(
    process: Process,
    started: StartedVmm,
    created: &AsyncFd<OwnedFd>,
) -> Result<Vmm, LaunchError> {
    let (binary, socket) = (started.binary.clone(), started.api_socket.clone());
    let bound = started.ready_bound;
    let vmm = Vmm::new(process, started).map_err(|source| LaunchError::Watch { source })?;
    // All of it may take this long, the VMM's first answer included.
    let client = vmm.client().clone().with_bound(bound);
    let version = tokio::select! {
        version = timeout(bound, ready(&client, &binary, &socket, created)) => version,
        end = vmm.exited() => return Err(LaunchError::Exited { binary, end }),
    };
    match version {
        Ok(version) => Ok(vmm.with_version(version?)),
        Err(_) => Err(LaunchError::NotReady {
            binary,
            bound,
            last_output: vmm.console(),
        }),
    }
}

/// Waits for the API and asks for the version.
async fn ready(
    client: &Client,
    binary: &Path,
    socket: &Path,
    created: &AsyncFd<OwnedFd>,
) -> Result<Version, LaunchError> {
    let unusable = |source| LaunchError::Directory {
        dir: socket.parent().unwrap_or(Path::new("/")).to_owned(),
        source,
    };
    while !socket.try_exists().map_err(unusable)? {
        next_event(created).await.map_err(unusable)?;
    }
    while let Err(error) = fc_vsock::unix::connect(socket).await
        && error.kind() == io::ErrorKind::ConnectionRefused
    {
        sleep(LISTEN_INTERVAL).await;
    }
    let binary = || binary.to_owned();
    match client.describe_instance().await {
        Ok(info) => match Version::parse(&info.vmm_version) {
            Some(version) if version >= MINIMUM_VERSION => Ok(version),
            _ => Err(LaunchError::TooOld {
                binary: binary(),
                version: info.vmm_version,
            }),
        },
        Err(ApiError::VmmGone { end, .. }) => Err(LaunchError::Exited {
            binary: binary(),
            end,
        }),
        Err(source) => Err(LaunchError::Version {
            binary: binary(),
            source,
        }),
    }
}

/// Something that becomes readable when a file appears in `dir`.
fn watch_directory(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
    inotify::add_watch(&events, dir, flags)?;
    readiness::readable(events)
}

/// Waits until something appeared in the directory since the last time; what, does not matter.
async fn next_event(created: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    loop {
        let mut ready = created.readable().await?;
        match rustix::io::read(created.get_ref(), &mut buffer) {
            Ok(_) => return Ok(()),
            Err(Errno::AGAIN) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}
