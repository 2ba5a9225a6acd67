//! From the guest to the host.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::sleep;

use super::IoError;
use super::delivery::{Part, Stage};
use super::target::Output;
use super::wire::Wire;

/// Bytes moved at once. Allocated when the first byte is there: most processes say little.
const BUFFER: usize = 64 << 10;
/// Bytes taken from the guest, after its process has ended, before the host's side wants them. Firecracker
/// forgets a connection that the guest closed 2 s later, with the 64 KiB that it may still hold of it: it
/// must get rid of them into its Unix socket, whose buffer (some 200 KiB) may be full too.
const AHEAD: usize = 512 << 10;
/// How often to look whether anybody reads, once the process has ended.
const LOOK: Duration = Duration::from_millis(100);
/// Pauses between looks at how much a FIFO's reader has left. No event tells that it took the last byte.
const DRAIN: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// How a stream is followed.
pub struct Watched<'a> {
    /// Is told how far it has come.
    pub part: Part,
    /// True once the process has ended.
    pub ended: watch::Receiver<bool>,
    /// Called with the first byte.
    pub first_output: &'a (dyn Fn() + Send + Sync),
}

/// Copies until the guest closes its stream, then closes the output and, last, the stream,
/// which tells the guest that everything arrived.
pub async fn copy(wire: Wire, mut output: Output, watched: Watched<'_>) -> Result<(), IoError> {
    let mut stream = wire.connect().await?;
    let copied = async {
        pump(&mut stream, &mut output, &watched).await?;
        drain(&mut output, &watched.part).await
    };
    if let Err(error) = copied.await {
        tracing::debug!("Output stream ended early: {error}");
    }
    drop(output);
    Ok(())
}

async fn pump(
    stream: &mut UnixStream,
    output: &mut Output,
    watched: &Watched<'_>,
) -> io::Result<()> {
    let mut chunk = Vec::new();
    let mut ahead = Vec::new();
    let mut first = true;
    loop {
        std::mem::swap(&mut chunk, &mut ahead);
        if chunk.is_empty() && !receive(stream, &mut chunk, output, watched).await? {
            return Ok(());
        }
        if std::mem::take(&mut first) {
            (watched.first_output)();
        }
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            watched.part.set(Stage::Reader);
            rest = &rest[write(output, rest, stream, &mut ahead, watched).await?..];
            let here = rest.len() + ahead.len();
            watched.part.read_but(here as u64 + output.unread()?);
        }
        chunk.clear();
    }
}

/// Waits for more from the guest; answers whether there is. Meanwhile, once the process has ended, follows the
/// reader.
async fn receive(
    stream: &mut UnixStream,
    chunk: &mut Vec<u8>,
    output: &mut Output,
    watched: &Watched<'_>,
) -> io::Result<bool> {
    let more = async {
        stream.readable().await?;
        chunk.reserve(BUFFER);
        stream.read_buf(chunk).await
    };
    let follow = async {
        wait_for(&watched.ended).await;
        match drain(output, &watched.part).await {
            Ok(()) => pending().await,
            Err(error) => error,
        }
    };
    let count = tokio::select! {
        biased;
        count = more => count?,
        error = follow => return Err(error),
    };
    watched.part.came(count);
    Ok(count > 0)
}

/// Writes some of `bytes`. Meanwhile, once the process has ended, takes what is left of it from the guest, and
/// says whether anybody reads.
async fn write(
    output: &mut Output,
    bytes: &[u8],
    stream: &mut UnixStream,
    ahead: &mut Vec<u8>,
    watched: &Watched<'_>,
) -> io::Result<usize> {
    let read_ahead = async {
        wait_for(&watched.ended).await;
        read_ahead(stream, ahead, &watched.part).await
    };
    let mut read_ahead = std::pin::pin!(read_ahead);
    loop {
        let look = async {
            wait_for(&watched.ended).await;
            sleep(LOOK).await;
        };
        tokio::select! {
            biased;
            written = output.write(bytes) => return written,
            never = &mut read_ahead => match never {},
            () = look => {}
        }
        if !output.has_reader()? {
            watched.part.set(Stage::Nobody);
        }
    }
}

/// Waits for the end of the process.
async fn wait_for(ended: &watch::Receiver<bool>) {
    if ended.clone().wait_for(|ended| *ended).await.is_err() {
        // Nobody can tell any more, and the stream is about to be dropped.
        pending().await
    }
}

/// Takes what is left. An end, or an error, is met again by the next read.
async fn read_ahead(stream: &mut UnixStream, ahead: &mut Vec<u8>, part: &Part) -> Infallible {
    while ahead.len() < AHEAD
        && let Ok(count @ 1..) = stream.read_buf(ahead).await
    {
        part.came(count);
    }
    pending().await
}

/// Waits until the reader has taken everything that came, or has gone.
async fn drain(output: &mut Output, part: &Part) -> io::Result<()> {
    let [mut pause, longest] = DRAIN;
    let mut before = None;
    loop {
        let left = output.unread()?;
        if before != Some(left) {
            part.read_but(left);
            pause = DRAIN[0];
        }
        before = Some(left);
        if left == 0 {
            part.set(Stage::Guest);
            return Ok(());
        }
        if !output.has_reader()? {
            part.set(Stage::Nobody);
            return Ok(());
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}
