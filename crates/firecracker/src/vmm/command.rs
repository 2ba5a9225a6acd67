//! How to start a VMM.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::format;
use crate::{FifoTail, Tail};

/// How long a VMM may take until its API answers if nothing else is said. Firecracker takes some 10 ms.
const READY_BOUND: Duration = Duration::from_secs(30);

/// How to start a VMM: `<binary> --api-sock <api_socket> --id <id> <args>` in `dir`.
#[derive(Debug, Clone)]
pub struct VmmCommand {
    /// The program: an absolute path, or a name without `/` that is looked for on `PATH`.
    pub binary: PathBuf,
    /// The VM's id.
    pub id: String,
    /// The process' working directory; the VM's.
    pub dir: PathBuf,
    /// File name of the API's socket in `dir`. It must not exist.
    pub api_socket: String,
    /// Further arguments. Default none.
    pub args: Vec<OsString>,
    /// Whether every line of the process' output goes to `tracing`, at debug level with the field `vmm_stream`.
    /// Default false.
    pub log_output: bool,
    /// How long the process may take until its API answers. Default 30 s.
    pub ready_bound: Duration,
    /// Where the process' output is kept; to share it, give a clone. Default one of its own.
    pub output: Tail,
    /// The VMM's log, to be part of what is known of its end. Default none.
    pub log: Option<FifoTail>,
}

impl VmmCommand {
    /// The usual way to start `binary` for the VM `id` in `dir`: API on `firecracker.sock`, the rest as
    /// documented at the fields.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>, id: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            id: id.into(),
            dir: dir.into(),
            api_socket: "firecracker.sock".to_owned(),
            args: Vec::new(),
            log_output: false,
            ready_bound: READY_BOUND,
            output: Tail::default(),
            log: None,
        }
    }

    /// The API's socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join(&self.api_socket)
    }

    /// Starts the process: no input, output in pipes, to be killed when the calling thread ends.
    pub(super) fn spawn(&self) -> io::Result<Child> {
        if self.binary.is_absolute() {
            format::check(&self.binary)?;
        }
        let mut command = Command::new(&self.binary);
        command
            .arg("--api-sock")
            .arg(&self.api_socket)
            .arg("--id")
            .arg(&self.id)
            .args(&self.args)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let parent = rustix::process::getpid();
        let die_with_parent = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have died before that.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(
                    rustix::io::Errno::SRCH.raw_os_error(),
                ))
            }
        };
        // SAFETY: between fork and exec only system calls are made and nothing is allocated.
        unsafe { command.pre_exec(die_with_parent) };
        command.spawn()
    }
}

/// A VMM's process that somebody else started, for [`Vmm::attach`](super::Vmm::attach).
#[derive(Debug)]
pub struct StartedVmm {
    /// Which program it runs, for messages: what the user configured rather than its name in a jail.
    pub binary: PathBuf,
    /// The process' id, as seen from here. It has to be this process' still when it is attached to: that of a child
    /// is, also after its end, and so is that of a child of whoever waits for it later.
    pub pid: u32,
    /// The API's socket as seen from here. Its directory must exist, the socket itself may come later.
    pub api_socket: PathBuf,
    /// The pipe that its standard output goes to. Default: not read.
    pub stdout: Option<OwnedFd>,
    /// The pipe that its standard error goes to. Default: not read.
    pub stderr: Option<OwnedFd>,
    /// As [`VmmCommand::log_output`].
    pub log_output: bool,
    /// How long it may take from now until the API answers. Default 30 s.
    pub ready_bound: Duration,
    /// As [`VmmCommand::output`].
    pub output: Tail,
    /// As [`VmmCommand::log`].
    pub log: Option<FifoTail>,
}

impl StartedVmm {
    /// The process `pid`, which runs `binary` and has its API at `api_socket`; the rest as documented at the fields.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>, pid: u32, api_socket: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            pid,
            api_socket: api_socket.into(),
            stdout: None,
            stderr: None,
            log_output: false,
            ready_bound: READY_BOUND,
            output: Tail::default(),
            log: None,
        }
    }
}
