//! Collects the exit statuses of all children: those that we started and those that the kernel
//! gave us because their parents died (we are PID 1 or a subreaper; a container's processes come
//! to us when the OCI runtime that made them exits).
//!
//! One loop calls waitpid(2), everybody else asks it. It must stay the only one: nothing in this
//! program may wait for a child in another way.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 + the signal that killed it.
    pub status: u32,
    /// When we heard of it.
    pub at: SystemTime,
}

/// Handle of the loop that reaps children. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reaper(Arc<Mutex<Registry>>);

#[derive(Debug, Default)]
struct Registry {
    /// Processes somebody waits for.
    claimed: HashMap<Pid, oneshot::Sender<Exit>>,
    /// Number of open [`Window`]s.
    windows: usize,
    /// Exits of processes nobody waits for, kept only while a window is open. At most one per
    /// process id.
    unclaimed: HashMap<Pid, Exit>,
}

impl Reaper {
    /// Makes this process the reaper of its descendants and starts the loop on the current
    /// (single threaded) runtime.
    ///
    /// # Errors
    /// When SIGCHLD cannot be caught or orphans cannot be adopted.
    pub fn start() -> io::Result<Self> {
        let mut children = signal(SignalKind::child())?;
        nix::sys::prctl::set_child_subreaper(true)?;
        let reaper = Self(Arc::default());
        let registry = reaper.clone();
        tokio::spawn(async move {
            loop {
                registry.reap();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// From now until the window is dropped, no exit is forgotten: a process that is started
    /// after this call can be [claimed](Window::claim) even when it has ended meanwhile.
    #[must_use]
    pub fn window(&self) -> Window {
        self.lock().windows += 1;
        Window(self.clone())
    }

    /// Starts `command` and watches for its end. The child must not be waited for.
    ///
    /// # Errors
    /// Those of fork(2) and exec(3).
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, Watched)> {
        let window = self.window();
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok((child, window.claim(Pid::from_raw(pid))))
    }

    /// Sends a signal to a claimed process. A process that has ended gets none, also when its id
    /// has been given to another one since.
    ///
    /// # Errors
    /// `ESRCH` when the process is not claimed or has ended, `EINVAL` when there is no such signal.
    pub fn kill(&self, pid: Pid, signal: i32) -> nix::Result<()> {
        let registry = self.lock();
        if !registry.claimed.contains_key(&pid) {
            return Err(Errno::ESRCH);
        }
        // Not reaped yet (we hold the registry), so the id still belongs to it. Realtime signals
        // have no name in nix, so the number goes to the kernel as it is.
        // SAFETY: kill(2) takes two integers.
        Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        let mut registry = self.lock();
        while let Some((pid, status)) = reap_one() {
            let at = SystemTime::now();
            registry.exited(pid, Exit { status, at });
        }
    }
}

/// Reaps one child that has ended, if there is one: its id and status.
fn reap_one() -> Option<(Pid, u32)> {
    loop {
        let mut status = 0;
        // Not nix's wrapper: it fails on a death by realtime signal, after the child is reaped.
        // SAFETY: waitpid(2) writes one int to the pointer, which is valid for the call.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            pid if pid > 0 && libc::WIFSIGNALED(status) => {
                return Some((
                    Pid::from_raw(pid),
                    128 + libc::WTERMSIG(status).unsigned_abs(),
                ));
            }
            pid if pid > 0 => {
                return Some((Pid::from_raw(pid), libc::WEXITSTATUS(status).unsigned_abs()));
            }
            0 => return None,
            _ if Errno::last() == Errno::EINTR => {}
            // ECHILD: no children at all.
            _ => return None,
        }
    }
}

impl Registry {
    fn exited(&mut self, pid: Pid, exit: Exit) {
        if let Some(watcher) = self.claimed.remove(&pid) {
            // A watcher that went away does not want to know.
            let _ = watcher.send(exit);
        } else if self.windows > 0 {
            self.unclaimed.insert(pid, exit);
        }
    }
}

/// A period in which every exit is remembered; see [`Reaper::window`].
#[derive(Debug)]
pub struct Window(Reaper);

impl Window {
    /// Watches for the end of `pid`, which must be a process that came (or comes) to us after the
    /// window was opened.
    #[must_use]
    pub fn claim(&self, pid: Pid) -> Watched {
        let (tell, exit) = oneshot::channel();
        let mut registry = self.0.lock();
        match registry.unclaimed.remove(&pid) {
            Some(exit) => {
                // The receiver is right here.
                let _ = tell.send(exit);
            }
            None => {
                registry.claimed.insert(pid, tell);
            }
        }
        Watched { pid, exit }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut registry = self.0.lock();
        registry.windows -= 1;
        if registry.windows == 0 {
            registry.unclaimed = HashMap::new();
        }
    }
}

/// A process whose end somebody waits for.
#[derive(Debug)]
pub struct Watched {
    pid: Pid,
    exit: oneshot::Receiver<Exit>,
}

impl Watched {
    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the process's end.
    pub async fn exited(&mut self) -> Exit {
        (&mut self.exit).await.unwrap_or_else(|_| Exit {
            // Two claims on one process, which would be a mistake of ours: 255 as for a status
            // that is not known.
            status: 255,
            at: SystemTime::now(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: Pid = Pid::from_raw(4_000_000);

    fn exit(status: u32) -> Exit {
        Exit {
            status,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn an_exit_before_the_claim_is_kept() {
        let reaper = Reaper(Arc::default());
        let window = reaper.window();
        reaper.lock().exited(PID, exit(3));
        assert_eq!(window.claim(PID).exited().await.status, 3);
    }

    #[tokio::test]
    async fn an_exit_after_the_claim_is_told() {
        let reaper = Reaper(Arc::default());
        let mut watched = reaper.window().claim(PID);
        reaper.lock().exited(PID, exit(7));
        assert_eq!(watched.exited().await.status, 7);
    }

    #[test]
    fn exits_are_forgotten_when_no_window_is_open() {
        let reaper = Reaper(Arc::default());
        reaper.lock().exited(PID, exit(1));
        assert!(reaper.lock().unclaimed.is_empty());
        let (first, second) = (reaper.window(), reaper.window());
        reaper.lock().exited(PID, exit(1));
        drop(first);
        assert_eq!(reaper.lock().unclaimed.len(), 1);
        drop(second);
        assert!(reaper.lock().unclaimed.is_empty());
    }

    #[test]
    fn only_claimed_processes_get_signals() {
        let reaper = Reaper(Arc::default());
        assert_eq!(reaper.kill(PID, 0), Err(Errno::ESRCH));
    }
}
