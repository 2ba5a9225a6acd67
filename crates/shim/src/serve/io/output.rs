//! From the guest to the host.

use std::io::{self, Write};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::IoError;
use super::target::Output;
use super::wire::Wire;

/// Bytes moved at once. Allocated when the first byte is there: most processes say little.
const BUFFER: usize = 64 << 10;

/// Copies until the guest closes its stream, then closes the output and, last, the stream,
/// which tells the guest that everything arrived.
pub async fn copy(
    wire: Wire,
    mut output: Output,
    progress: &watch::Sender<u64>,
    first_output: &(dyn Fn() + Send + Sync),
) -> Result<(), IoError> {
    let mut stream = wire.connect().await?;
    if let Err(error) = pump(&mut stream, &mut output, progress, first_output).await {
        tracing::debug!("Output stream ended early: {error}");
    }
    drop(output);
    Ok(())
}

async fn pump(
    stream: &mut UnixStream,
    output: &mut Output,
    progress: &watch::Sender<u64>,
    first_output: &(dyn Fn() + Send + Sync),
) -> io::Result<()> {
    stream.readable().await?;
    let mut buffer = vec![0; BUFFER];
    let mut first = true;
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        if std::mem::take(&mut first) {
            first_output();
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let written = match output {
                Output::Fifo(fifo) => fifo.write(rest).await?,
                Output::File(file) => file.write(rest)?,
            };
            rest = &rest[written..];
            progress.send_modify(|bytes| *bytes += written as u64);
        }
    }
}
