//! A process that is known by a file descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};

use super::ProcessExit;

/// A file descriptor that means a process whatever happens to its id.
///
/// It may be a child of this process or not: a child is reaped here, and only of a child is the exit status known.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    pidfd: OwnedFd,
    exit: Mutex<Option<ProcessExit>>,
}

impl Process {
    /// The process that has the id `pid` now. The caller sees to it that this is the one it means: a child has its
    /// id until it is reaped.
    ///
    /// # Errors
    /// No process has this id.
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self {
            pid,
            pidfd: pidfd_open(raw, PidfdFlags::empty())?,
            exit: Mutex::new(None),
        })
    }

    /// Its id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// A descriptor that is readable once the process has ended.
    pub(super) fn ended(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    pub(super) fn signal(&self, signal: Signal) {
        // Fails only for a process that has ended, which is what signals are for here.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// How the process ended, if it did. The first call takes that from the kernel, later ones repeat it.
    pub(super) fn exit(&self) -> Option<ProcessExit> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if exit.is_none() && self.wait(Duration::ZERO) {
            *exit = Some(self.reap());
        }
        *exit
    }

    /// Waits, blocking, until the process has ended, at most `bound`. Whether it has.
    fn wait(&self, bound: Duration) -> bool {
        let bound = Timespec::try_from(bound).ok();
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        rustix::event::poll(&mut ended, bound.as_ref()) == Ok(1)
    }

    /// Takes the exit status of a process that has ended, so that it is no zombie if it was a child.
    fn reap(&self) -> ProcessExit {
        let status = waitid(
            WaitId::PidFd(self.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        match status {
            Ok(Some(status)) => exit_status(&status),
            // `ECHILD`: its parent is somebody else, or somebody else in this process has reaped it.
            Ok(None) | Err(_) => ProcessExit::Unknown,
        }
    }

    /// Kills the process and waits, blocking, until it is gone: nobody else may be left to do it.
    pub(super) fn kill_and_reap(&self, bound: Duration) {
        if self.exit().is_some() {
            return;
        }
        self.signal(Signal::KILL);
        // A process that survives this is the kernel's problem, and its parent's at the end.
        self.wait(bound);
        self.exit();
    }
}

/// What `waitid(2)` says, in the form of `waitpid(2)`: the signal in the lowest bits or else the code in the second
/// byte.
fn exit_status(status: &WaitIdStatus) -> ProcessExit {
    const DUMPED: i32 = 0x80;
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code & 0xff) << 8,
        (None, Some(signal)) if status.dumped() => signal | DUMPED,
        (None, Some(signal)) => signal,
        (None, None) => return ProcessExit::Unknown,
    };
    ProcessExit::Status(ExitStatus::from_raw(raw))
}
