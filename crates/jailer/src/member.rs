//! A process of a control group, held by a descriptor: its number may be another process' when it has ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

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
            Err(Errno::SRCH) => Ok(None),
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
        let bound = Timespec::try_from(bound).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut events = [PollFd::new(&self.pidfd, PollFlags::IN)];
        Ok(poll(&mut events, Some(&bound))? != 0)
    }

    /// Takes its exit status if it has ended and is a child of this process.
    pub(crate) fn reap(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        // It may be somebody else's child.
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), options);
    }
}
