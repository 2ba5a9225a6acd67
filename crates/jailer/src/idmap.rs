//! User namespaces that describe an id-mapped mount: one user and group of a file appear as another.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::User;

/// A user namespace in which the user and group `from` of a file system are `to` on the host.
///
/// # Errors
/// When the host allows no further user namespaces.
pub(crate) fn user_namespace(from: (u32, u32), to: User) -> io::Result<OwnedFd> {
    let (ours, theirs) = io::pipe()?;
    let child = Sleeper::new(ours.as_raw_fd(), theirs.as_raw_fd())?;
    // The child goes on to its end when the last writing end is closed.
    let _theirs = theirs;
    let of_child = |name: &str| format!("/proc/{}/{name}", child.pid);
    fs::write(of_child("uid_map"), format!("{} {} 1", from.0, to.uid()))?;
    fs::write(of_child("gid_map"), format!("{} {} 1", from.1, to.gid()))?;
    Ok(File::open(of_child("ns/user"))?.into())
}

/// A process in a user namespace of its own that does nothing.
struct Sleeper {
    pid: libc::pid_t,
}

impl Sleeper {
    fn new(read: i32, write: i32) -> io::Result<Self> {
        let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
        // SAFETY: without a stack and without shared memory this is fork(2). The child makes only system calls
        // that may be made after a fork of a process with threads.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
        match libc::pid_t::try_from(pid) {
            Ok(0) => {
                let mut byte = 0_u8;
                // SAFETY: both descriptors are the child's own copies, and `byte` is as long as said.
                unsafe {
                    libc::close(write);
                    libc::read(read, std::ptr::from_mut(&mut byte).cast(), 1);
                    libc::_exit(0)
                }
            }
            Ok(pid @ 1..) => Ok(Self { pid }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: the process is our child and not waited for yet, so that its id is its own.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}
