//! Processes named so that a recycled process id is not mistaken for them.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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
        let Some(fd) = self.pidfd()? else {
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

    /// Waits, blocking, until the process is gone; answers whether it is.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn wait(self, bound: Duration) -> io::Result<bool> {
        match self.pidfd()? {
            None => Ok(true),
            Some(fd) => wait_fd(&fd, bound),
        }
    }

    /// Waits until the process is gone, in a tokio runtime. One that nobody reaped yet is gone.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub async fn ended(self) -> io::Result<()> {
        match self.pidfd()? {
            None => Ok(()),
            Some(fd) => {
                // SAFETY: an owned descriptor stays open and the same until `AsyncFd` drops it.
                let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
                // A pidfd is readable once its process has ended.
                fd.readable().await.map(drop)
            }
        }
    }

    /// Whether the process still runs. One that cannot be watched counts as alive.
    #[must_use]
    pub fn is_alive(self) -> bool {
        !self.wait(Duration::ZERO).unwrap_or(false)
    }

    /// A descriptor that means this process; `None` when it is gone. One that nobody
    /// reaped yet has one, which is readable.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn pidfd(self) -> io::Result<Option<OwnedFd>> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            // Invalid is, to older kernels, one that is reaped this very moment.
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // Compared after opening: the pidfd then surely means the process we looked at.
        Ok((Self::of(self.pid) == Some(self)).then_some(fd))
    }
}

fn wait_fd(fd: &OwnedFd, bound: Duration) -> io::Result<bool> {
    let begin = Instant::now();
    loop {
        let left = bound.saturating_sub(begin.elapsed());
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            // A signal that has a handler, which tells nothing of this process.
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
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
        assert!(id.is_alive() && !other.is_alive());
        id.kill(Duration::from_secs(60)).unwrap();
        assert!(!child.wait().unwrap().success());
        id.kill(Duration::from_secs(1)).unwrap();
        assert!(id.wait(Duration::ZERO).unwrap());
    }

    #[tokio::test]
    async fn an_end_is_an_event() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        let ended = id.ended();
        tokio::pin!(ended);
        tokio::select! {
            biased;
            _ = &mut ended => panic!("cat ended with its input open"),
            () = std::future::ready(()) => {}
        }
        drop(child.stdin.take());
        ended.await.unwrap();
        assert!(!id.is_alive(), "nobody reaped it, but it is gone");
        child.wait().unwrap();
        id.ended().await.unwrap();
    }
}
