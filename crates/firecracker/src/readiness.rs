//! File descriptors that tokio has no type for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `fd`, to be waited for until it is readable.
///
/// # Errors
/// If the runtime cannot watch it.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned file descriptor is open and stays the same until it is dropped, which `AsyncFd` does.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}
