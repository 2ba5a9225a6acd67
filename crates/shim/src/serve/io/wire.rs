//! The guest's side of a stream: one vsock connection.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fc_proto::guest::STDIO_PORT_BASE;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::IoError;

/// How long an old agent may take to listen.
const DIAL_BOUND: Duration = Duration::from_secs(5);

/// Hands out vsock ports, three per process, never twice.
pub struct Ports {
    next: AtomicU32,
    vsock: PathBuf,
    /// Whether the agent connects to the host; otherwise the host dials.
    pub host_listens: bool,
}

impl Ports {
    /// Ports of the VM whose vsock socket is `vsock`.
    pub fn new(vsock: PathBuf, host_listens: bool) -> Self {
        Self {
            next: AtomicU32::new(STDIO_PORT_BASE),
            vsock,
            host_listens,
        }
    }

    /// Three fresh ports.
    pub fn take(&self) -> [u32; 3] {
        let first = self.next.fetch_add(3, Ordering::Relaxed);
        [first, first + 1, first + 2]
    }

    /// The host's end of a port.
    pub fn wire(&self, port: u32) -> Result<Wire, IoError> {
        if self.host_listens {
            let listener = fc_vsock::Listener::bind(&self.vsock, port)
                .map_err(|source| IoError::Listen { port, source })?;
            Ok(Wire::Listen(listener, port))
        } else {
            Ok(Wire::Dial(self.vsock.clone(), port))
        }
    }
}

/// A connection to be made.
pub enum Wire {
    /// The guest connects to us.
    Listen(fc_vsock::Listener, u32),
    /// We connect to the guest.
    Dial(PathBuf, u32),
}

impl Wire {
    /// Waits for the connection. Only one is ever taken.
    pub async fn connect(self) -> Result<UnixStream, IoError> {
        match self {
            Self::Listen(listener, port) => listener
                .accept()
                .await
                .map_err(|source| IoError::Listen { port, source }),
            Self::Dial(vsock, port) => {
                let deadline = Instant::now() + DIAL_BOUND;
                Ok(fc_vsock::connect_retry(&vsock, port, deadline).await?)
            }
        }
    }
}
