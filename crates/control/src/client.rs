//! A client of the control API: the daemon's, or without a daemon this process's own.

use std::io;

use fc_proto::control::FirecrackerClient;
use fc_proto::ttrpc;
use fc_proto::ttrpc::asynchronous::transport::{Listener, Socket};
use fc_proto::ttrpc::asynchronous::{Client, Server};
use futures_util::stream;
use tokio::net::UnixStream;

use crate::host::{Host, Settings};
use crate::service::service;

/// A client, and who answers it.
pub struct Connection {
    /// The client. Every call needs the namespace in its context, see [`fc_rpc::client::context`].
    pub client: FirecrackerClient,
    /// Who answers without a daemon: this process.
    pub own: Option<Host>,
    /// Serves `client` for `own`, as long as it lives.
    _server: Option<Server>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon's socket is there but does not let us in.
    #[error("Cannot connect to the control service at {address}")]
    Daemon {
        /// Its address, config's `control_address`.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// This process cannot serve itself.
    #[error("Cannot set up the control service in this process")]
    Own(#[source] io::Error),
    /// The same, in the ttrpc server.
    #[error("Cannot serve the control API in this process")]
    Server(#[from] ttrpc::Error),
}

/// Connects to the daemon at the configuration's `control_address`; where nobody listens, the
/// same service runs in this process, on one thread of a tokio runtime that must go on being driven.
///
/// # Errors
/// See [`ClientError`].
pub async fn connect(settings: Settings) -> Result<Connection, ClientError> {
    let address = &settings.config.control_address;
    match fc_rpc::client::connect(address).await {
        Ok(client) => Ok(Connection {
            client: FirecrackerClient::new(client),
            own: None,
            _server: None,
        }),
        Err(error) if nobody_listens(&error) => in_process(Host::new(settings)).await,
        Err(source) => Err(ClientError::Daemon {
            address: address.display().to_string(),
            source,
        }),
    }
}

fn nobody_listens(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// A client that this process serves itself.
///
/// # Errors
/// See [`ClientError`].
pub async fn in_process(host: Host) -> Result<Connection, ClientError> {
    let (stream, server) = in_process_stream(host.clone()).await?;
    Ok(Connection {
        client: FirecrackerClient::new(Client::new(Socket::new(stream))),
        own: Some(host),
        _server: Some(server),
    })
}

/// A connection that this process serves itself.
pub(crate) async fn in_process_stream(host: Host) -> Result<(UnixStream, Server), ClientError> {
    let (ours, theirs) = UnixStream::pair().map_err(ClientError::Own)?;
    let one = stream::iter([Ok::<_, io::Error>(theirs)]);
    let mut server = Server::new()
        .add_listener(Listener::new(one))
        .register_service(service(host));
    server.start().await?;
    Ok((ours, server))
}
