//! Why a device cannot start.

use std::io;
use std::path::PathBuf;

/// An error of [`VsockDevice::start`](crate::VsockDevice::start).
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The guest's context id is reserved or does not fit.
    #[error("Guest CID {0} cannot be used: choose one from 3 to 4294967294")]
    GuestCid(u64),
    /// The host-side socket cannot be made.
    #[error("Cannot listen on the vsock's host socket {}", path.display())]
    Bind {
        /// `uds_path` as given.
        path: PathBuf,
        /// `AddrInUse` if something of that name exists.
        #[source]
        source: io::Error,
    },
    /// The kernel refused an epoll instance, an event or a thread.
    #[error("Cannot set up the vsock device's event handling")]
    Setup(#[source] io::Error),
    /// The vhost-user library could not create its worker.
    #[error("Cannot start the vsock device's vhost-user worker")]
    Worker(#[source] WorkerError),
}

/// The vhost-user library's own error, which implements no `std::error::Error`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WorkerError(pub(crate) vhost_user_backend::Error);
