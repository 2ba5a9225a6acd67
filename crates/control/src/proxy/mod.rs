//! containerd's ttrpc address, shared: service `Firecracker` is ours, everything else goes to
//! containerd's own socket, which was moved (`[ttrpc] address` in its configuration).
//!
//! Clients of firecracker-containerd look for the control API at `<containerd.sock>.ttrpc`. Messages are
//! passed on as they are: a request's service decides where its stream goes, and stream ids stay the
//! client's, of which each side sees some. So this does not have to know containerd's services, nor
//! their namespaces or streams.

mod connection;
mod frame;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use fc_rpc::incoming::{Connections, Incoming};
use futures_util::Stream;
use tokio::net::UnixListener;

use crate::host::Host;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves clients of containerd's former address until the future is dropped.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(listener: UnixListener, host: Host, containerd: PathBuf) -> std::io::Result<()> {
    let mut incoming = Incoming::new(listener.into_std()?, Connections::default())?;
    loop {
        let next = std::future::poll_fn(|cx| Pin::new(&mut incoming).poll_next(cx));
        match next.await {
            Some(Ok(client)) => {
                let (host, containerd) = (host.clone(), containerd.clone());
                tokio::spawn(async move {
                    if let Err(error) = connection::run(client, host, &containerd).await {
                        tracing::debug!("A client of containerd's ttrpc address: {error}");
                    }
                });
            }
            // Too many open files, for instance: clients wait in the socket, and nothing tells when it is better.
            Some(Err(error)) => {
                tracing::warn!("Cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            None => return Ok(()),
        }
    }
}
