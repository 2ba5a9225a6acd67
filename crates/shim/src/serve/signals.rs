//! SIGTERM and SIGINT end the VM in good order.

use std::io;
use std::sync::Arc;

use fc_errors::chain;
use tokio::signal::unix::{SignalKind, signal};

use super::shim::Shim;
use super::stop;

/// Watches for the signals from now on.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn watch(shim: &Arc<Shim>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shim = Arc::clone(shim);
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("Got {name}, so the VM ends");
        if let Err(error) = stop::stop(&shim, stop::DEFAULT_BOUND).await {
            tracing::warn!("{}", chain(&error));
        }
        shim.end();
    });
    Ok(())
}
