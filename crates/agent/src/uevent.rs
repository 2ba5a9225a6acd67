//! The kernel's announcements about devices (netlink, `NETLINK_KOBJECT_UEVENT`).

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::sync::watch;

use crate::fd::Fd;

/// The multicast group of the kernel's own events (udevd's are in group 2).
const KERNEL_GROUP: u32 = 1;

/// Tells when something about some device has changed. What it was, whoever waits looks up
/// itself, which also covers events from before it waited and those the kernel dropped.
#[derive(Debug, Clone)]
pub struct Uevents(watch::Receiver<u64>);

impl Uevents {
    /// Subscribes and starts a task that counts events.
    ///
    /// # Errors
    /// When the kernel has no such socket.
    pub fn start() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        let fd = Fd::new(fd)?;
        let (count, events) = watch::channel(0);
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            let receive = async |buffer: &mut [u8]| {
                fd.when_readable(|fd| match recv(fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                    // The queue overflowed: something happened.
                    Err(Errno::ENOBUFS) => Ok(0),
                    result => result,
                })
                .await
            };
            while !count.is_closed() && receive(&mut buffer).await.is_ok() {
                count.send_modify(|count| *count += 1);
            }
        });
        Ok(Self(events))
    }

    /// A subscriber that sees events from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscriber {
        let mut events = self.0.clone();
        events.mark_unchanged();
        Subscriber(events)
    }
}

/// Waits for events; those between two waits count.
#[derive(Debug)]
pub struct Subscriber(watch::Receiver<u64>);

impl Subscriber {
    /// Waits for an event after the last one seen.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            // The socket failed; only the caller's bound ends the wait.
            std::future::pending::<()>().await;
        }
    }
}
