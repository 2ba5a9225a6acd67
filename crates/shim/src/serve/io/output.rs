//! From the guest to the host.

use std::convert::Infallible;
use std::future::pending;
use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::IoError;
use super::target::Output;
use super::wire::Wire;

/// Bytes moved at once. Allocated when the first byte is there: most processes say little.
const BUFFER: usize = 64 << 10;
/// Bytes taken from the guest, after its process has ended, before the host's side wants them. Firecracker
/// forgets a connection that the guest closed 2 s later, with the 64 KiB that it may still hold of it: it
/// must get rid of them into its Unix socket, whose buffer (some 200 KiB) may be full too.
const AHEAD: usize = 512 << 10;

/// How a stream is followed.
pub struct Watched<'a> {
    /// Gets the number of bytes copied.
    pub progress: &'a watch::Sender<u64>,
    /// True once the process has ended.
    pub ended: watch::Receiver<bool>,
    /// Called with the first byte.
    pub first_output: &'a (dyn Fn() + Send + Sync),
}

/// Copies until the guest closes its stream, then closes the output and, last, the stream,
/// which tells the guest that everything arrived.
pub async fn copy(wire: Wire, mut output: Output, watched: Watched<'_>) -> Result<(), IoError> {
    let mut stream = wire.connect().await?;
    if let Err(error) = pump(&mut stream, &mut output, watched).await {
        tracing::debug!("Output stream ended early: {error}");
    }
    drop(output);
    Ok(())
}

async fn pump(
    stream: &mut UnixStream,
    output: &mut Output,
    mut watched: Watched<'_>,
) -> io::Result<()> {
    stream.readable().await?;
    let mut chunk = Vec::with_capacity(BUFFER);
    let mut ahead = Vec::new();
    let mut first = true;
    loop {
        chunk.clear();
        std::mem::swap(&mut chunk, &mut ahead);
        if chunk.is_empty() {
            chunk.reserve(BUFFER);
            if stream.read_buf(&mut chunk).await? == 0 {
                return Ok(());
            }
        }
        if std::mem::take(&mut first) {
            (watched.first_output)();
        }
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let written = tokio::select! {
                biased;
                written = output.write(rest) => written?,
                never = read_ahead(stream, &mut ahead, &mut watched.ended) => match never {},
            };
            rest = &rest[written..];
            watched
                .progress
                .send_modify(|bytes| *bytes += written as u64);
        }
    }
}

/// While the output waits for its reader: takes what is left of a process that has ended. An end, or an
/// error, is met again by the next read.
async fn read_ahead(
    stream: &mut UnixStream,
    ahead: &mut Vec<u8>,
    ended: &mut watch::Receiver<bool>,
) -> Infallible {
    // Without a sender nobody can tell any more, and the stream is about to be dropped.
    if ended.wait_for(|ended| *ended).await.is_ok() {
        while ahead.len() < AHEAD && matches!(stream.read_buf(ahead).await, Ok(1..)) {}
    }
    pending().await
}
