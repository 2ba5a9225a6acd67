//! Opens the connections that a process's streams travel over.

use std::io;
use std::time::Duration;

use tokio::time::timeout;

use crate::fd::Fd;
use crate::transport::{Listener, Transport};

/// Bound on the host's accepting of our connections.
const CONNECT_BOUND: Duration = Duration::from_secs(10);
/// Bound on the host's connecting to our ports; the original agent's.
const ACCEPT_BOUND: Duration = Duration::from_secs(20);

/// A port for each stream that is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ports {
    /// For stdin.
    pub stdin: Option<u32>,
    /// For stdout, or the terminal's output.
    pub stdout: Option<u32>,
    /// For stderr.
    pub stderr: Option<u32>,
    /// The host listens and we connect; else the other way round.
    pub host_listens: bool,
}

/// A connection for each stream that is wanted.
#[derive(Debug, Default)]
pub struct Connections {
    /// For stdin.
    pub stdin: Option<Fd>,
    /// For stdout, or the terminal's output.
    pub stdout: Option<Fd>,
    /// For stderr.
    pub stderr: Option<Fd>,
}

/// Why a stream has no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host does not accept.
    #[error("Cannot connect the {stream} stream to the host's port {port}")]
    Connect {
        /// Which stream.
        stream: &'static str,
        /// Of the host.
        port: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Our port is not free.
    #[error("Cannot listen on port {port} for the {stream} stream")]
    Listen {
        /// Which stream.
        stream: &'static str,
        /// Ours.
        port: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host did not come.
    #[error("The host did not connect to port {port} for the {stream} stream")]
    Accept {
        /// Which stream.
        stream: &'static str,
        /// Ours.
        port: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Ports that the host is about to connect to, or has connections waiting at.
#[derive(Debug)]
pub struct Pending {
    transport: Transport,
    stdin: Option<End>,
    stdout: Option<End>,
    stderr: Option<End>,
}

#[derive(Debug)]
struct End {
    stream: &'static str,
    port: u32,
    /// None when the host listens.
    listener: Option<Listener>,
}

impl Pending {
    /// Listens on the ports, unless the host does. Must be called within a runtime.
    ///
    /// # Errors
    /// When one of the ports is in use.
    pub fn open(transport: &Transport, ports: Ports) -> Result<Self, ConnectError> {
        let end = |stream, port: Option<u32>| {
            port.map(|port| {
                let listener = (!ports.host_listens)
                    .then(|| transport.listen(port))
                    .transpose()
                    .map_err(|source| ConnectError::Listen {
                        stream,
                        port,
                        source,
                    })?;
                Ok(End {
                    stream,
                    port,
                    listener,
                })
            })
            .transpose()
        };
        Ok(Self {
            stdin: end("stdin", ports.stdin)?,
            stdout: end("stdout", ports.stdout)?,
            stderr: end("stderr", ports.stderr)?,
            transport: transport.clone(),
        })
    }

    /// Waits for all connections.
    ///
    /// # Errors
    /// The first that fails, or takes longer than its bound.
    pub async fn connections(self) -> Result<Connections, ConnectError> {
        Ok(Connections {
            stdin: establish(&self.transport, self.stdin).await?,
            stdout: establish(&self.transport, self.stdout).await?,
            stderr: establish(&self.transport, self.stderr).await?,
        })
    }
}

async fn establish(transport: &Transport, end: Option<End>) -> Result<Option<Fd>, ConnectError> {
    let Some(End {
        stream,
        port,
        listener,
    }) = end
    else {
        return Ok(None);
    };
    let connection = match listener {
        None => within(CONNECT_BOUND, transport.connect(port))
            .await
            .map_err(|source| ConnectError::Connect {
                stream,
                port,
                source,
            })?,
        Some(listener) => within(ACCEPT_BOUND, listener.accept())
            .await
            .map_err(|source| ConnectError::Accept {
                stream,
                port,
                source,
            })?,
    };
    Ok(Some(connection))
}

async fn within(
    bound: Duration,
    connection: impl Future<Output = io::Result<Fd>>,
) -> io::Result<Fd> {
    timeout(bound, connection)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
