//! Holds the guest's processors while QEMU, and with it the guest's time, goes on.
//!
//! QEMU's own `stop` stops the clocks too, and there is no way to set them afterwards. So a pause is: stop, hold the
//! threads of the processors where they now wait, and let QEMU continue. They run no guest code until they are let
//! go; timers, devices and the control connection work meanwhile, as they do in a paused Firecracker.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::AbortHandle;

/// Threads of QEMU's that are held; dropping it lets them go.
#[derive(Debug)]
pub struct Frozen {
    threads: Vec<libc::pid_t>,
    reaper: AbortHandle,
}

impl Frozen {
    /// Holds `threads` of a child process, which are waiting for something. Both this and the drop must be on one
    /// thread of ours.
    ///
    /// # Errors
    /// The host does not allow it (a jail without ptrace, say); then none is held.
    pub fn hold(threads: &[libc::pid_t]) -> io::Result<Self> {
        // From here on their end is told to us, too.
        let mut children = signal(SignalKind::child())?;
        let mut held = Held::default();
        for &thread in threads {
            held.add(thread)?;
        }
        let threads = std::mem::take(&mut held.0);
        let ours = threads.clone();
        let reaper = tokio::spawn(async move {
            // The end of QEMU shows only after that of the threads we hold has been looked at.
            while children.recv().await.is_some() {
                for &thread in &ours {
                    // Fails for one that was looked at before.
                    drop(wait(thread, libc::WNOHANG));
                }
            }
        });
        Ok(Self {
            threads,
            reaper: reaper.abort_handle(),
        })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.reaper.abort();
        drop(Held(std::mem::take(&mut self.threads)));
    }
}

/// Threads that are let go when this is dropped.
#[derive(Default)]
struct Held(Vec<libc::pid_t>);

impl Held {
    fn add(&mut self, thread: libc::pid_t) -> io::Result<()> {
        ptrace(libc::PTRACE_SEIZE, thread)?;
        self.0.push(thread);
        ptrace(libc::PTRACE_INTERRUPT, thread)?;
        // At once: the thread waits for something that can be interrupted.
        wait(thread, 0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for &thread in &self.0 {
            // One that has ended meanwhile is not held any more.
            if let Err(error) = ptrace(libc::PTRACE_DETACH, thread) {
                log::warn!("A processor of the guest cannot be let go: {error}");
            }
        }
    }
}

fn ptrace(request: libc::c_uint, thread: libc::pid_t) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: these requests take a thread's id, and two arguments that are none; they access no memory of ours.
    match unsafe { libc::ptrace(request, thread, none, none) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn wait(thread: libc::pid_t, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: without a place for the status, nothing is written.
    match unsafe { libc::waitpid(thread, std::ptr::null_mut(), flags | libc::__WALL) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// State letter of a process: T or t if it stands still (proc_pid_stat(5)).
    fn state(child: &Child) -> String {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        rest[..1].to_owned()
    }

    fn cat() -> Child {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    #[tokio::test]
    async fn held_and_let_go() {
        let mut child = cat();
        let frozen = Frozen::hold(&[child.id().cast_signed()]).unwrap();
        assert_eq!(state(&child), "t");
        // Only held at all if its input's end does not end it.
        drop(child.stdin.take());
        assert!(child.try_wait().unwrap().is_none());
        drop(frozen);
        assert!(child.wait().unwrap().success());
    }

    #[tokio::test]
    async fn nothing_is_held_if_one_cannot_be() {
        let mut child = cat();
        let id = child.id().cast_signed();
        assert!(Frozen::hold(&[id, libc::pid_t::MAX]).is_err());
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}
