//! From the host to a process's stdin or terminal.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::slot::Slot;
use super::{BUFFER, ended};
use crate::fd::Fd;

/// After CloseIO, how long the stream may be silent before it counts as ended. The host ends the
/// stream itself when it has sent everything; this bounds the wait for one that does not.
const SILENCE: Duration = Duration::from_secs(1);

/// Copies until the host ends the stream, the process ends or it closes its stdin; the process
/// then sees the end of its input. A broken connection only pauses the copy.
pub(super) async fn copy(target: Fd, slot: Arc<Slot>, mut exited: watch::Receiver<bool>) {
    tokio::select! {
        () = pump(&target, &slot) => {}
        () = ended(&mut exited) => {}
    }
    slot.finish();
}

async fn pump(target: &Fd, slot: &Slot) {
    let mut buffer = vec![0; BUFFER];
    let mut closing = false;
    while let Some(connection) = slot.connected().await {
        let count = tokio::select! {
            biased;
            () = slot.replaced(&connection) => continue,
            count = read(&connection.fd, &mut buffer, closing) => count,
            () = slot.close_requested(), if !closing => {
                closing = true;
                continue;
            }
        };
        match count {
            Ok(0) => return,
            // The process does not read any more.
            Ok(count) if target.write_all(&buffer[..count]).await.is_err() => return,
            Ok(_) => {}
            Err(_) => slot.broken(&connection),
        }
    }
}

/// Reads; when the stream is closing, silence is its end.
async fn read(connection: &Fd, buffer: &mut [u8], closing: bool) -> io::Result<usize> {
    if !closing {
        return connection.read(buffer).await;
    }
    timeout(SILENCE, connection.read(buffer))
        .await
        .unwrap_or(Ok(0))
}
