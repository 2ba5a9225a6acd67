//! How an agent tells the host that it serves.

use std::time::Duration;

use fc_client::text::excerpt;
use fc_proto::guest::{Announcement, PROTOCOL};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use super::GuestError;

/// How long an agent may hesitate over its announcement.
const ANSWER_BOUND: Duration = Duration::from_secs(30);

/// Waits for the agent's announcement and reads it.
pub(in crate::machine) async fn announcement(
    listener: &fc_vsock::Listener,
) -> Result<(), GuestError> {
    let read = async {
        let stream = listener.accept().await?;
        let mut line = Vec::new();
        let limit = u64::try_from(Announcement::MAX_BYTES).unwrap_or(u64::MAX);
        let mut stream = BufReader::new(stream.take(limit));
        // Its line's end is the announcement's: Firecracker hides from us that the guest ended its
        // direction alone.
        match tokio::time::timeout(ANSWER_BOUND, stream.read_until(b'\n', &mut line)).await {
            Ok(done) => done?,
            Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
        };
        serde_json::from_slice::<Announcement>(&line).map_err(std::io::Error::from)
    };
    let announcement = read.await.map_err(GuestError::Announcement)?;
    check_protocol(announcement.protocol, &announcement.agent_version)?;
    match announcement.error {
        Some(error) => Err(GuestError::Agent(excerpt(&error))),
        None => Ok(()),
    }
}

/// Whether an agent and this host can work together.
pub(super) fn check_protocol(theirs: u32, agent_version: &str) -> Result<(), GuestError> {
    if theirs == PROTOCOL {
        return Ok(());
    }
    Err(GuestError::Protocol {
        theirs,
        agent_version: excerpt(agent_version),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::guest;
    use tokio::io::AsyncWriteExt;

    async fn announce(line: &str) -> Result<(), GuestError> {
        let dir = tempfile::tempdir().unwrap();
        let vsock = dir.path().join("v");
        let listener = fc_vsock::Listener::bind(&vsock, guest::ANNOUNCE_PORT).unwrap();
        let mut stream = fc_vsock::unix::connect(listener.path()).await.unwrap();
        // Both at once: a long line fits no socket's buffer. The host may stop reading it.
        let write = async {
            let _ = stream.write_all(line.as_bytes()).await;
            // Like the agent: it keeps the connection until the host closes it.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        tokio::join!(write, announcement(&listener)).1
    }

    #[tokio::test]
    async fn announcements() {
        announce(&format!(
            "{{\"protocol\":{PROTOCOL},\"agent_version\":\"1\"}}\n"
        ))
        .await
        .unwrap();
        assert!(matches!(
            announce("{\"protocol\":99,\"agent_version\":\"9.9\\u001b\"}\n").await,
            Err(GuestError::Protocol { theirs: 99, agent_version }) if agent_version == "9.9"
        ));
        assert!(matches!(
            announce(&format!(
                "{{\"protocol\":{PROTOCOL},\"agent_version\":\"1\",\"error\":\"no cgroups\"}}\n"
            ))
            .await,
            Err(GuestError::Agent(why)) if why == "no cgroups"
        ));
        let long = "x".repeat(1 << 20);
        assert!(matches!(
            announce(&long).await,
            Err(GuestError::Announcement(_))
        ));
    }
}
