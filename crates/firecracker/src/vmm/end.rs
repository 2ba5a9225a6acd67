//! How a VMM ended.

use std::fmt;
use std::process::ExitStatus;

use tokio::sync::watch;

/// Lines of each kind that are part of a message.
const SHOWN_LINES: usize = 20;

/// How a process ended, as far as this process can know. Shown as `exit status: 1`, `signal: 9 (SIGKILL)` or
/// `an unknown exit status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProcessExit {
    /// With this exit status, or killed by this signal.
    Status(ExitStatus),
    /// It is gone. More the kernel tells only to a process' parent, which was somebody else.
    Unknown,
}

impl ProcessExit {
    /// The exit status, if it is known.
    #[must_use]
    pub fn status(self) -> Option<ExitStatus> {
        match self {
            Self::Status(status) => Some(status),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for ProcessExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::Unknown => f.write_str("an unknown exit status"),
        }
    }
}

/// How a VMM's process ended and what it said last. Shown with the last of these lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmEnd {
    /// Its exit status, or the signal that killed it.
    pub status: ProcessExit,
    /// The last lines of its output, the guest's console among them; oldest first.
    pub last_output: Vec<String>,
    /// The last lines of its log, if that was given with the command; oldest first.
    pub last_log: Vec<String>,
}

impl fmt::Display for VmmEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the VMM ended with {}", self.status)?;
        write_lines(f, "log", &self.last_log)?;
        write_lines(f, "output", &self.last_output)
    }
}

/// Writes the last of `lines`, each on a line of its own, if there are any.
pub(super) fn write_lines(f: &mut fmt::Formatter<'_>, kind: &str, lines: &[String]) -> fmt::Result {
    if !lines.is_empty() {
        write!(f, "; its last {kind}:")?;
    }
    for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
        write!(f, "\n  {line}")?;
    }
    Ok(())
}

/// Why a VMM did not end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// It was killed and is still there: the kernel keeps it, in most cases until a disk or a network file system
    /// answers, or a frozen control group is thawed.
    #[error(
        "The VMM (process {pid}) does not end after SIGKILL: it is stuck in the kernel \
         (/proc/{pid}/wchan and /proc/{pid}/cgroup say where)"
    )]
    Unkillable {
        /// Its process id.
        pid: u32,
    },
}

/// The end of a process, for any number of waiters.
#[derive(Debug, Clone)]
pub(crate) struct Exit {
    end: watch::Receiver<Option<VmmEnd>>,
}

impl Exit {
    pub(super) fn new() -> (watch::Sender<Option<VmmEnd>>, Self) {
        let (sender, end) = watch::channel(None);
        (sender, Self { end })
    }

    /// The end, if it has come.
    pub(crate) fn now(&self) -> Option<VmmEnd> {
        self.end.borrow().clone()
    }

    /// Waits for the end.
    pub(crate) async fn wait(&self) -> VmmEnd {
        let mut end = self.end.clone();
        if let Ok(end) = end.wait_for(Option::is_some).await
            && let Some(end) = end.clone()
        {
            return end;
        }
        // Whoever would tell is gone with its runtime, and this future with it.
        std::future::pending().await
    }
}
