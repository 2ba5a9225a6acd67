//! Processes named so that a recycled process id is not mistaken for them.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process id and the moment the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id on the host.
    pub pid: u32,
    /// Start time in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    pub start_ticks: u64,
}

impl ProcessId {
    /// The running process `pid`, or `None` when there is none.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name may hold spaces and parentheses; the fields after the last ')' are plain.
        let fields = stat.rsplit_once(')')?.1;
        let start_ticks = fields.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, start_ticks })
    }

    /// This process.
    #[must_use]
    pub fn current() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Kills the process if it still is the one that was recorded, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be signalled, or is not gone after `bound`.
    pub fn kill(self, bound: Duration) -> io::Result<()> {
        let Some(fd) = self.open()? else {
            return Ok(());
        };
        match pidfd_send_signal(&fd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(e.into()),
        }
        if wait_fd(&fd, bound)? {
            Ok(())
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }

    /// Waits until the process is gone; answers whether it is.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn wait(self, bound: Duration) -> io::Result<bool> {
        match self.open()? {
            None => Ok(true),
            Some(fd) => wait_fd(&fd, bound),
        }
    }

    fn open(self) -> io::Result<Option<std::os::fd::OwnedFd>> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // Compared after opening: the pidfd then surely means the process we looked at.
        Ok((Self::of(self.pid) == Some(self)).then_some(fd))
    }
}

fn wait_fd(fd: &std::os::fd::OwnedFd, bound: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(bound).map_err(|_| io::ErrorKind::InvalidInput)?;
    let ready = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout))?;
    Ok(ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself_and_kills_only_the_recorded_process() {
        assert_eq!(
            ProcessId::current().map(|p| p.pid),
            Some(std::process::id())
        );
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        let other = ProcessId {
            start_ticks: id.start_ticks + 1,
            ..id
        };
        other.kill(Duration::from_secs(1)).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        id.kill(Duration::from_secs(10)).unwrap();
        assert!(!child.wait().unwrap().success());
        id.kill(Duration::from_secs(1)).unwrap();
        assert!(id.wait(Duration::ZERO).unwrap());
    }
}
