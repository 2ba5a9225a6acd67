//! Tells the host that the agent serves, or why it cannot.

use std::io;
use std::time::Duration;

use fc_proto::guest::{ANNOUNCE_PORT, Announcement, PROTOCOL};
use tokio::time::timeout;

use crate::configure::VERSION;
use crate::debug;
use crate::transport::Transport;

/// Bound on the host's taking of the announcement. It listens before the VM starts; without the announcement it waits
/// in vain.
const BOUND: Duration = Duration::from_secs(30);

/// Sends the announcement. A host that does not want it (an old one) finds out in another way.
pub async fn announce(transport: &Transport, error: Option<String>) {
    let mut announcement = Announcement {
        protocol: PROTOCOL,
        agent_version: VERSION.to_owned(),
        error,
    };
    match timeout(BOUND, send(transport, &line(&mut announcement))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("The host takes no announcement: {error}"),
        Err(_) => debug!(
            "The host takes no announcement within {} s",
            BOUND.as_secs()
        ),
    }
}

async fn send(transport: &Transport, line: &[u8]) -> io::Result<()> {
    let connection = transport.connect(ANNOUNCE_PORT).await?;
    connection.write_all(line).await?;
    // The host closes once it has read the line; closing before could discard it.
    while connection.read(&mut [0; 16]).await? > 0 {}
    Ok(())
}

/// The announcement as the host accepts it; an error that makes it too long is cut short.
fn line(announcement: &mut Announcement) -> Vec<u8> {
    loop {
        // A struct of numbers and strings always has a JSON form.
        let mut line = serde_json::to_vec(announcement).unwrap_or_default();
        line.push(b'\n');
        match &mut announcement.error {
            Some(error) if line.len() > Announcement::MAX_BYTES => {
                let half = error.len() / 2;
                let cut = (0..=half).rfind(|at| error.is_char_boundary(*at));
                error.truncate(cut.unwrap_or(0));
            }
            _ => return line,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_is_cut_to_what_the_host_reads() {
        let mut announcement = Announcement {
            protocol: PROTOCOL,
            agent_version: VERSION.to_owned(),
            error: Some("ä\n".repeat(5000)),
        };
        let line = line(&mut announcement);
        assert!(line.len() <= Announcement::MAX_BYTES && line.ends_with(b"\n"));
        let read: Announcement = serde_json::from_slice(&line).unwrap();
        assert!(read.error.unwrap().starts_with('ä'));
    }
}
