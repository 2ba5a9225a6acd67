//! The guest's side of a stream: one vsock connection.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fc_proto::guest::STDIO_PORT_BASE;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::IoError;

/// How long an old agent may take to listen.
const DIAL_BOUND: Duration = Duration::from_secs(30);

/// Listens on a port where the guest can connect to it.
pub type Listen = Box<dyn Fn(u32) -> io::Result<fc_vsock::Listener> + Send + Sync>;

/// Hands out vsock ports, three per process, never twice.
pub struct Ports {
    next: AtomicU32,
    vsock: PathBuf,
    listen: Option<Listen>,
}

impl Ports {
    /// Ports of the VM whose vsock socket is `vsock`. The agent connects to the host, which uses `listen`; `None`
    /// for an agent to which the host connects.
    pub fn new(vsock: PathBuf, listen: Option<Listen>) -> Self {
        Self {
            next: AtomicU32::new(STDIO_PORT_BASE),
            vsock,
            listen,
        }
    }

    /// Whether the agent connects to the host; otherwise the host dials.
    pub fn host_listens(&self) -> bool {
        self.listen.is_some()
    }

    /// Three fresh ports.
    pub fn take(&self) -> [u32; 3] {
        let first = self.next.fetch_add(3, Ordering::Relaxed);
        [first, first + 1, first + 2]
    }

    /// The host's end of a port.
    pub fn wire(&self, port: u32) -> Result<Wire, IoError> {
        match &self.listen {
            Some(listen) => {
                let listener = listen(port).map_err(|source| IoError::Listen { port, source })?;
                Ok(Wire::Listen(listener, port))
            }
            None => Ok(Wire::Dial(self.vsock.clone(), port)),
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
