//! Frames between a tap device and QEMU, each way at its own rate.
//!
//! QEMU cannot limit a network interface. An interface with a rate limiter is therefore connected to QEMU by a pair of
//! sockets, and its frames are copied here, as fast as the limiters allow. Frames that must wait do so where they
//! are: in the guest's queue, or in the tap device's, which drops what it has no room for; Firecracker's do, too.
//!
//! An interface on which guests ask for metadata is connected the same way.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;

use crate::limit::Limit;
use crate::mmds::Stack;
use crate::readiness;

/// Longest frame: a tap device without offloads carries no longer ones.
const MAX_FRAME: usize = 65536 + 18;

/// The limits of an interface, as the guest sees directions.
#[derive(Clone, Debug)]
pub struct Limits {
    /// What the guest receives.
    pub rx: Arc<Limit>,
    /// What the guest sends.
    pub tx: Arc<Limit>,
}

/// Two tasks that copy frames; they end when this is dropped.
#[derive(Debug)]
pub struct Relay([JoinHandle<()>; 2]);

impl Relay {
    /// Starts copying, but for frames that `metadata` answers, and returns QEMU's end of the sockets.
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub fn start(
        tap: &File,
        limits: &Limits,
        metadata: Option<Stack>,
    ) -> io::Result<(Self, OwnedFd)> {
        let (ours, of_qemu) = StdDatagram::pair()?;
        ours.set_nonblocking(true)?;
        let socket = Arc::new(UnixDatagram::from_std(ours)?);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let tap = Arc::new(readiness::watch(tap.try_clone()?.into(), interest)?);
        let rx = to_guest(
            Arc::clone(&tap),
            Arc::clone(&socket),
            Arc::clone(&limits.rx),
        );
        let tx = from_guest(tap, socket, Arc::clone(&limits.tx), metadata);
        let relay = Self([tokio::spawn(rx), tokio::spawn(tx)]);
        Ok((relay, of_qemu.into()))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn to_guest(tap: Arc<AsyncFd<OwnedFd>>, socket: Arc<UnixDatagram>, limit: Arc<Limit>) {
    let mut frame = vec![0; MAX_FRAME];
    loop {
        limit.ready().await;
        let read = tap
            .async_io(Interest::READABLE, |tap| {
                Ok(rustix::io::read(tap, &mut frame)?)
            })
            .await;
        let length = match read {
            Ok(length) => length,
            Err(error) => return ended("receives", &error),
        };
        limit.take(length);
        if let Err(error) = socket.send(&frame[..length]).await {
            return ended("receives", &error);
        }
    }
}

async fn from_guest(
    tap: Arc<AsyncFd<OwnedFd>>,
    socket: Arc<UnixDatagram>,
    limit: Arc<Limit>,
    mut metadata: Option<Stack>,
) {
    let mut frame = vec![0; MAX_FRAME];
    loop {
        limit.ready().await;
        let again = metadata.as_mut().and_then(Stack::delay);
        let received = tokio::select! {
            received = socket.recv(&mut frame) => Some(received),
            // TCP repeats what gets lost after a time.
            () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => None,
        };
        let length = match received {
            Some(Ok(length)) => length,
            Some(Err(error)) => return ended("sends", &error),
            None => 0,
        };
        if let Some(metadata) = &mut metadata
            && (received.is_none() || metadata.wants(&frame[..length]))
        {
            // No limit is for these.
            if length > 0 {
                metadata.receive(&frame[..length]);
            }
            for answer in metadata.run() {
                if let Err(error) = socket.send(&answer).await {
                    return ended("receives", &error);
                }
            }
            continue;
        }
        limit.take(length);
        // Not once it is writable: a device that is down is not, and its guest must not wait for it.
        let written = rustix::io::write(tap.get_ref(), &frame[..length]);
        // A device that is down, or a frame too short: this frame is lost, as on a real wire.
        if let Err(error) = written {
            log::debug!("A frame of the guest's is lost: {error}");
        }
    }
}

/// The device is gone, or QEMU is.
fn ended(what: &str, error: &io::Error) {
    log::warn!("A network interface no longer {what}: {error}");
}
