//! From a process's stdout, stderr or terminal to the host.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::slot::{Connected, Slot};
use super::{BUFFER, CLOSE_BOUND, ended};
use crate::fd::Fd;

/// How long after its end a process's output may stay open in other hands (its children's).
const GRACE: Duration = Duration::from_secs(5);

/// Copies until the source's end, then ends the stream and waits for the host to have read it.
///
/// Bytes that were read are delivered, if need be over a later connection; while there is none,
/// they stay in the pipe. `exited` turns true at the process's end: [`GRACE`] later the copy ends
/// with what is in the pipe by then.
pub(super) async fn copy(source: Fd, slot: Arc<Slot>, exited: watch::Receiver<bool>) {
    let last = pump(&source, &slot, exited).await;
    // The other ends of the pipe, if any, must not block in a write that nobody reads.
    drop(source);
    slot.finish();
    if let Some(connection) = last {
        close(connection.fd.as_ref()).await;
    }
}

/// Returns the connection that got the last byte; none when the stream was given up.
async fn pump(source: &Fd, slot: &Slot, mut exited: watch::Receiver<bool>) -> Option<Connected> {
    let mut buffer = vec![0; BUFFER];
    // Bytes still to copy, once the grace is over.
    let mut rest: Option<usize> = None;
    let mut grace = std::pin::pin!(async {
        ended(&mut exited).await;
        sleep(GRACE).await;
    });
    loop {
        let connection = slot.connected().await?;
        if rest == Some(0) {
            return Some(connection);
        }
        let room = rest.unwrap_or(BUFFER).min(BUFFER);
        let count = tokio::select! {
            // First the end of the grace: a child that never stops writing must not put it off.
            biased;
            () = &mut grace, if rest.is_none() => {
                rest = Some(source.available().unwrap_or(0));
                continue;
            }
            count = source.read(&mut buffer[..room]) => count,
            () = slot.replaced(&connection) => continue,
            () = connection.fd.closed() => {
                slot.broken(&connection);
                continue;
            }
        };
        let count = match count {
            Ok(count) => count,
            Err(error) if is_terminal_end(&error) => 0,
            Err(error) => {
                crate::say!("Cannot read a container's output, which ends here: {error}");
                0
            }
        };
        if count == 0 {
            return Some(connection);
        }
        if let Some(rest) = &mut rest {
            *rest -= count;
        }
        deliver(&buffer[..count], connection, slot).await?;
    }
}

/// Writes all of `data`, over as many connections as it takes; none when no more will come.
async fn deliver(mut data: &[u8], mut connection: Connected, slot: &Slot) -> Option<()> {
    while !data.is_empty() {
        let written = tokio::select! {
            written = connection.fd.write(data) => written,
            () = slot.replaced(&connection) => Ok(0),
        };
        match written {
            Ok(count) => data = &data[count..],
            Err(_) => slot.broken(&connection),
        }
        if !data.is_empty() {
            connection = slot.connected().await?;
        }
    }
    Some(())
}

/// Ends our direction and waits until the host has closed its: closing at once could discard what
/// it has not read yet.
async fn close(connection: &Fd) {
    if connection.shutdown_write().is_ok() {
        let mut scrap = [0; 64];
        let closed = async {
            while connection
                .read(&mut scrap)
                .await
                .is_ok_and(|count| count > 0)
            {}
        };
        // The bound is for a host that never closes; what it did not read by then it never will.
        let _ = timeout(CLOSE_BOUND, closed).await;
    }
}

/// What reading a terminal answers when no process has it open any more.
fn is_terminal_end(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EIO as i32)
}
