//! The daemon: its address, its host, its end.

use std::io;
use std::path::PathBuf;

use fc_control::error::ControlError;
use fc_control::host::{Host, Settings};
use fc_control::proxy;
use fc_control::service::service;
use fc_control::socket::{ClaimError, Claimed};
use fc_errors::chain;
use fc_proto::ttrpc;
use fc_proto::ttrpc::asynchronous::Server;
use fc_proto::ttrpc::asynchronous::transport::Listener;
use fc_rpc::incoming::{Connections, Incoming};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::notify::notify;

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The runtime's configuration.
    #[error(transparent)]
    Config(#[from] fc_config::ConfigError),
    /// An address.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The async runtime, a socket or a signal handler.
    #[error("Cannot set up the daemon")]
    Setup(#[source] io::Error),
    /// The ttrpc server.
    #[error("Cannot serve the control API")]
    Server(#[from] ttrpc::Error),
}

/// Serves until SIGTERM or SIGINT. `shared`: containerd's former ttrpc address, to be served too, and its new one.
///
/// # Errors
/// See [`DaemonError`].
pub async fn run(
    settings: Settings,
    shared: Option<(PathBuf, PathBuf)>,
) -> Result<(), DaemonError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Setup)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Setup)?;
    let address = settings.config.control_address.clone();
    let mut claimed = Claimed::new(&address).await?;
    let mut claimed_shared = match &shared {
        Some((address, _)) => Some(Claimed::new(address).await?),
        None => None,
    };
    let host = Host::new(settings);
    let _server = match claimed.listener() {
        Some(listener) => Some(serve(listener, host.clone()).await?),
        None => None,
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        containerd = host.settings().containerd_address,
        "Serving {}",
        address.display()
    );
    if let Some(listener) = claimed_shared.as_mut().and_then(Claimed::listener)
        && let Some((address, containerd)) = shared
    {
        tracing::info!(
            containerd = %containerd.display(),
            "Serving {}",
            address.display()
        );
        tokio::spawn(proxy::serve(listener, host.clone(), containerd));
    }
    notify("READY=1");
    // Beside serving, so that a VM in a bad state delays nobody.
    tokio::spawn(adopt(host));
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!("Got {name}; VMs go on");
    notify("STOPPING=1");
    Ok(())
}

async fn serve(listener: UnixListener, host: Host) -> Result<Server, DaemonError> {
    let listener = listener.into_std().map_err(DaemonError::Setup)?;
    let incoming = Incoming::new(listener, Connections::default()).map_err(DaemonError::Setup)?;
    let mut server = Server::new()
        .add_listener(Listener::new(incoming))
        .register_service(service(host));
    server.start().await?;
    Ok(server)
}

async fn adopt(host: Host) {
    let adopted: Result<(), ControlError> = host.adopt().await;
    if let Err(error) = adopted {
        tracing::error!("VMs that run already are not watched: {}", chain(&error));
    }
}
