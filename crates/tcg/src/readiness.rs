//! Readiness of descriptors for the event loop.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor, which should not block.
///
/// # Errors
/// The kernel cannot watch it.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open and stays the same until it is dropped, which `AsyncFd` does.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
