//! The QEMU process: started with nothing but what it needs, ended with its parent.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;

use super::QemuError;

/// Lines of QEMU's standard error kept for error messages.
const KEPT_LINES: usize = 8;

/// How QEMU ended.
#[derive(Clone, Debug)]
pub struct End {
    /// Exit status; `None` if it could not be learnt.
    pub status: Option<ExitStatus>,
    /// The last lines it wrote to standard error.
    pub output: String,
}

impl End {
    /// Whether it ended because the guest did, and not by a failure of its own.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

impl From<End> for QemuError {
    fn from(end: End) -> Self {
        let status = end
            .status
            .map_or_else(|| "unknown status".to_owned(), |status| status.to_string());
        let output = if end.output.is_empty() {
            "it said nothing".to_owned()
        } else {
            end.output
        };
        Self::Ended {
            end: status,
            output,
        }
    }
}

/// A running QEMU. Dropping it kills QEMU.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    end: watch::Receiver<Option<End>>,
}

impl Process {
    /// Starts `program`. It inherits the descriptors `inherited` besides standard error, and is killed when
    /// the thread that calls this ends: call it on the main thread.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn spawn(
        program: &Path,
        arguments: &[OsString],
        inherited: Vec<RawFd>,
    ) -> Result<Self, QemuError> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let parent = getpid();
        let prepare = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if getppid() != Some(parent) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            for &fd in &inherited {
                // SAFETY: fcntl with F_SETFD touches no memory, and the descriptor stays open in the parent.
                if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == -1 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: `prepare` makes system calls only; it neither allocates nor takes locks.
        unsafe { command.pre_exec(prepare) };
        let spawn = |error| QemuError::Spawn {
            path: program.to_owned(),
            error,
        };
        let mut child = command.spawn().map_err(spawn)?;
        let pid = child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
            .ok_or_else(|| spawn(io::ErrorKind::NotFound.into()))?;
        let stderr = child.stderr.take();
        let (ended, end) = watch::channel(None);
        tokio::spawn(async move {
            let end = reap(child, stderr).await;
            ended.send_replace(Some(end));
        });
        Ok(Self { pid, end })
    }

    /// Process id on the host.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until QEMU has ended and everything it wrote is read.
    pub fn ended(&self) -> impl Future<Output = End> + Send + use<> {
        let mut end = self.end.clone();
        async move {
            let seen = end.wait_for(Option::is_some).await;
            let end = seen.ok().and_then(|end| end.clone());
            end.unwrap_or(End {
                status: None,
                output: String::new(),
            })
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.end.borrow().is_none() {
            // It may have ended this instant; it is not reaped before `end` says so, so the id is its own.
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

/// Logs what QEMU writes, and waits for its end.
async fn reap(mut child: Child, stderr: Option<ChildStderr>) -> End {
    let mut kept = VecDeque::new();
    if let Some(stderr) = stderr {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let line = line.strip_prefix("qemu-system-x86_64: ").unwrap_or(&line);
            log::warn!("QEMU: {line}");
            if kept.len() == KEPT_LINES {
                kept.pop_front();
            }
            kept.push_back(line.to_owned());
        }
    }
    let status = child.wait().await.ok();
    End {
        status,
        output: Vec::from(kept).join("; "),
    }
}
