//! The OCI runtime's command line: what `runc` (1.1 and newer) and `crun` have in common.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::member::readable_within;
use crate::run_lock;

/// The file for the first process' id, in the state directory: what a killed runtime leaves of it goes with that.
const PID_FILE: &str = "vmm.pid";
/// How long a runtime that is given up may take to end.
const KILL_BOUND: Duration = Duration::from_secs(1);
/// How long a runtime whose starter was killed may go on. It is killed with it, and its own processes soon see that.
const RUN_BOUND: Duration = Duration::from_secs(1);
/// How long what goes on may take to end when it is killed.
const HOLDERS_BOUND: Duration = Duration::from_secs(5);
/// Longest part of the runtime's words that an error repeats, in bytes.
const QUOTED: usize = 1000;
/// More than a pipe holds, in bytes (64 KiB unless somebody changes that).
const PIPE: u64 = 1 << 20;
/// What a service manager tells the service that this process is a part of. A runtime takes it for its own: it waits
/// until the VMM says that it is ready, or gives it the service's sockets.
const OF_THE_SERVICE: [&str; 4] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// Why the OCI runtime did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It does not run.
    #[error("Cannot run the OCI runtime {} (configuration key jailer.runc_binary_path)", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("`{} {subcommand}` failed ({status}): {words}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        subcommand: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said.
        words: String,
    },
    /// It takes too long.
    #[error("`{} {subcommand}` did not end within {bound:?} and was killed: {words}", program.display())]
    TimedOut {
        /// The program.
        program: PathBuf,
        /// What it was asked for.
        subcommand: &'static str,
        /// How long was waited.
        bound: Duration,
        /// The end of what it had said.
        words: String,
    },
    /// One that somebody started before does not end.
    #[error("An OCI runtime is still making the container after {bound:?}")]
    Busy {
        /// How long was waited.
        bound: Duration,
    },
    /// Whether one goes on is unknown.
    #[error("Cannot find out whether an OCI runtime is still making the container")]
    Unsettled {
        /// Why.
        source: io::Error,
    },
    /// It said that the container runs, and not as which process.
    #[error("The OCI runtime wrote no process id to {}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
}

impl RuntimeError {
    /// Whether the runtime failed and told of `file`.
    pub(crate) fn mentions(&self, file: &str) -> bool {
        matches!(self, Self::Failed { words, .. } if words.contains(file))
    }
}

/// An OCI runtime with a state directory of the VM's own, so that no other container can have the same name.
#[derive(Debug, Clone)]
pub(crate) struct OciRuntime {
    program: PathBuf,
    state: PathBuf,
    container: String,
}

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its first process.
    pub(crate) pid: u32,
    /// That process' output, after the runtime's own.
    pub(crate) stdout: OwnedFd,
    /// Likewise.
    pub(crate) stderr: OwnedFd,
}

impl OciRuntime {
    pub(crate) fn new(program: &Path, state: PathBuf, container: &str) -> Self {
        Self {
            program: program.to_owned(),
            state,
            container: container.to_owned(),
        }
    }

    /// Makes and starts the container of `bundle`. Its first process becomes this process' child when the
    /// runtime, which it is killed with, has ended.
    pub(crate) async fn run(
        &self,
        bundle: &Path,
        bound: Duration,
    ) -> Result<Started, RuntimeError> {
        let pid_file = self.state.join(PID_FILE);
        let spawn_error = |source| self.spawn_error(source);
        let (stdout, their_stdout) = io::pipe().map_err(spawn_error)?;
        let (stderr, their_stderr) = io::pipe().map_err(spawn_error)?;
        // The VMM becomes an orphan of the runtime; it is to become our child.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|error| self.spawn_error(error.into()))?;
        let lock = run_lock::hold(&self.state).map_err(spawn_error)?;
        let mut command = self.command();
        // SAFETY: between fork and exec only a system call is made and nothing is allocated.
        unsafe { command.pre_exec(move || Ok(fcntl_setfd(&lock, FdFlags::empty())?)) };
        command
            .args(["run", "--detach", "--pid-file"])
            .arg(&pid_file)
            .arg("--bundle")
            .arg(bundle)
            .arg(&self.container)
            .stdin(Stdio::null())
            .stdout(their_stdout)
            .stderr(their_stderr);
        let mut command = tokio::process::Command::from(command);
        let mut child = RunningChild(command.spawn().map_err(spawn_error)?);
        // It holds our copies of the pipes' other ends and of the lock.
        drop(command);
        let status = match tokio::time::timeout(bound, child.0.wait()).await {
            Ok(status) => status.map_err(spawn_error)?,
            Err(_) => return Err(self.timed_out("run", bound, &available(&stderr))),
        };
        if !status.success() {
            return Err(self.failed("run", status, &available(&stderr)));
        }
        let pid = std::fs::read_to_string(&pid_file).and_then(|text| {
            let pid = text.trim().parse();
            pid.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
        });
        Ok(Started {
            pid: pid.map_err(|source| RuntimeError::PidFile {
                path: pid_file,
                source,
            })?,
            stdout: stdout.into(),
            stderr: stderr.into(),
        })
    }

    /// Waits until nobody is making the container any more, and kills who does not stop.
    pub(crate) fn settle(&self) -> Result<(), RuntimeError> {
        let settled = || {
            if run_lock::wait(&self.state, RUN_BOUND)? {
                return Ok(true);
            }
            run_lock::kill_holders(&self.state)?;
            run_lock::wait(&self.state, HOLDERS_BOUND)
        };
        match settled().map_err(|source| RuntimeError::Unsettled { source })? {
            true => Ok(()),
            false => Err(RuntimeError::Busy {
                bound: RUN_BOUND + HOLDERS_BOUND,
            }),
        }
    }

    /// Deletes the container, whatever its state. One that the runtime does not know is no error.
    pub(crate) fn delete(&self, bound: Duration) -> Result<(), RuntimeError> {
        if !self.state.join(&self.container).exists() {
            return Ok(());
        }
        let mut command = self.command();
        command
            .args(["delete", "--force", &self.container])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let spawn_error = |source| self.spawn_error(source);
        let said = |child: &Child| child.stderr.as_ref().map(available).unwrap_or_default();
        let mut child = command.spawn().map_err(spawn_error)?;
        if !ended(child.id(), bound).map_err(spawn_error)? {
            child.kill().map_err(spawn_error)?;
            child.wait().map_err(spawn_error)?;
            return Err(self.timed_out("delete", bound, &said(&child)));
        }
        let status = child.wait().map_err(spawn_error)?;
        if status.success() {
            Ok(())
        } else {
            Err(self.failed("delete", status, &said(&child)))
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state);
        for variable in OF_THE_SERVICE {
            command.env_remove(variable);
        }
        let parent = rustix::process::getpid();
        let die_with_parent = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have died before that.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        };
        // SAFETY: between fork and exec only system calls are made and nothing is allocated.
        unsafe { command.pre_exec(die_with_parent) };
        command
    }

    fn spawn_error(&self, source: io::Error) -> RuntimeError {
        RuntimeError::Spawn {
            program: self.program.clone(),
            source,
        }
    }

    fn failed(&self, subcommand: &'static str, status: ExitStatus, words: &str) -> RuntimeError {
        RuntimeError::Failed {
            program: self.program.clone(),
            subcommand,
            status,
            words: or_nothing(words),
        }
    }

    fn timed_out(&self, subcommand: &'static str, bound: Duration, words: &str) -> RuntimeError {
        RuntimeError::TimedOut {
            program: self.program.clone(),
            subcommand,
            bound,
            words: or_nothing(words),
        }
    }
}

fn or_nothing(words: &str) -> String {
    match words.trim() {
        "" => "it said nothing".to_owned(),
        words => words.to_owned(),
    }
}

/// A runtime that makes a container. Dropped before its end, it is killed and has ended when the drop has: what it
/// left can be cleaned up then.
struct RunningChild(tokio::process::Child);

impl Drop for RunningChild {
    fn drop(&mut self) {
        // Without an id it has been waited for.
        if let Some(pid) = self.0.id()
            && self.0.start_kill().is_ok()
        {
            // Whether it ended is seen by what it left.
            let _ = ended(pid, KILL_BOUND);
        }
    }
}

fn ended(pid: u32, bound: Duration) -> io::Result<bool> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    readable_within(&pidfd, bound)
}

/// The end of what is in a pipe now; its writers may still be there, and write on.
fn available(pipe: &(impl AsFd + ?Sized)) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let pipe = pipe.as_fd().try_clone_to_owned()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        let mut text = Vec::new();
        // Ends with an error when nothing is left and somebody could still write.
        let _ = std::fs::File::from(pipe).take(PIPE).read_to_end(&mut text);
        Ok(text)
    };
    let text = read().unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(QUOTED)..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_runtime_that_does_not_end_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("runtime");
        let script = "#!/bin/sh\necho waiting for something >&2\nexec sleep 600\n";
        fc_test_host::write_program(&program, script);
        let runtime = OciRuntime::new(&program, dir.path().to_owned(), "vm");
        let mut bound = Duration::from_secs(1);
        loop {
            let error = runtime.run(dir.path(), bound).await.unwrap_err();
            let text = error.to_string();
            let ends =
                |words: &str| text.ends_with(&format!("within {bound:?} and was killed: {words}"));
            if ends("waiting for something") {
                break;
            }
            // On a busy machine the time may be over before it says anything: once more, with more of it.
            assert!(
                ends("it said nothing") && bound < Duration::from_secs(30),
                "{text}"
            );
            bound *= 2;
        }
    }
}
