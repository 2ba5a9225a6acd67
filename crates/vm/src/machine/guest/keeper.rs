//! Keeps a VM connected to its agent: a connection that breaks while the VMM lives is made again.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::link::Link;
use super::{Connection, Guest, GuestError};

/// How long a broken connection is tried to be made again.
const RECONNECT_BOUND: Duration = Duration::from_secs(30);
/// First and longest time between two attempts: nothing tells when a guest listens again.
const ATTEMPT_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(500));

/// Follows the connections to the agent until there is none any more.
pub(super) async fn keep(guest: Guest, vmm_ended: impl Future + Send) {
    let follow = async {
        for number in 2.. {
            // A connection that cannot be watched is left to those who use it.
            if let Err(error) = guest.link().closed().await {
                tracing::error!(%error, "Cannot watch the connection to the agent");
                std::future::pending::<()>().await;
            }
            if guest.is_closing() {
                return;
            }
            guest.set_connection(Connection::Lost);
            tracing::warn!("The connection to the agent broke");
            match again(&guest).await {
                Ok(link) => guest.replace(link, number),
                Err(error) => {
                    let error = fc_errors::chain(&error);
                    tracing::error!(error, "The connection to the agent stays broken");
                    return;
                }
            }
        }
    };
    tokio::select! {
        biased;
        _ = vmm_ended => {}
        () = follow => {}
    }
    guest.set_connection(Connection::Gone);
}

/// Connects and configures again: at once, then at growing intervals.
async fn again(guest: &Guest) -> Result<Link, GuestError> {
    let deadline = Instant::now() + RECONNECT_BOUND;
    let (mut interval, longest) = ATTEMPT_INTERVALS;
    loop {
        let attempt = timeout_at(deadline, guest.dial(deadline)).await;
        let error = match attempt {
            Ok(Ok(link)) => return Ok(link),
            // It answers, and will not answer otherwise.
            Ok(Err(error @ (GuestError::Protocol { .. } | GuestError::Host(_)))) => {
                return Err(error);
            }
            Ok(Err(error)) => error,
            Err(_) => return Err(GuestError::Lost(RECONNECT_BOUND)),
        };
        if Instant::now() + interval >= deadline {
            return Err(error);
        }
        sleep(interval).await;
        interval = (interval * 2).min(longest);
    }
}
