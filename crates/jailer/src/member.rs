//! A process of a control group, held by a descriptor: its number may be another process' when it has ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

/// A process, which may have ended.
#[derive(Debug)]
pub(crate) struct Member {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Member {
    /// Whichever process has the number now; `None` when none has. Whether it is one of the group has to be
    /// looked up after this: while the process lives, its number is nobody else's.
    pub(crate) fn open(pid: i32) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(pid) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Some(Self { pid, pidfd })),
            // Invalid is, to older kernels, one that is reaped this very moment.
            Err(Errno::SRCH | Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Its number.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills it. One that has ended is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended, or does so within `bound`.
    pub(crate) fn ends_within(&self, bound: Duration) -> io::Result<bool> {
        readable_within(&self.pidfd, bound)
    }

    /// Takes its exit status if it has ended and is a child of this process.
    pub(crate) fn reap(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        // It may be somebody else's child.
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
    }
}

/// Whether there is something to be read, or will be within `bound`; signals that have handlers meanwhile are no end.
pub(crate) fn readable_within(fd: &OwnedFd, bound: Duration) -> io::Result<bool> {
    let begin = Instant::now();
    loop {
        let rest = bound.saturating_sub(begin.elapsed());
        let rest = Timespec::try_from(rest).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&rest)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? != 0),
        }
    }
}
