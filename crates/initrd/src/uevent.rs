//! The kernel's announcements of devices (netlink, `NETLINK_KOBJECT_UEVENT`).

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// The multicast group of the kernel's own events (udevd's are in group 2).
const KERNEL_GROUP: u32 = 1;

/// A subscription to the kernel's device events.
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    /// Subscribes; events from now on are queued.
    pub(crate) fn open() -> nix::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self(fd))
    }

    /// Waits for an event and takes all that are queued; false when `deadline` came first.
    pub(crate) fn wait(&self, deadline: Instant) -> nix::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        // The caller looks at /dev again anyway, so what the events say does not matter, and
        // ENOBUFS (some were dropped) is an event like any other.
        let mut buffer = [0; 4096];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(true),
                Err(errno) => return Err(errno),
            }
        }
    }
}
