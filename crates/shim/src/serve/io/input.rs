//! From the host to the guest.

use std::io::{self, Read};
use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{self, pipe};
use tokio::sync::Notify;

use super::IoError;
use super::target::{Input, open_reader};
use super::wire::Wire;

/// Bytes moved at once; people type less, and pipes hold no more.
const BUFFER: usize = 64 << 10;

/// Copies until the input ends, `close` is notified, or the guest wants no more. The end of the
/// input is the end of the process's stdin, except for a terminal: there a new client may come.
pub async fn copy(input: Input, wire: Wire, terminal: bool, close: &Notify) -> Result<(), IoError> {
    let stream = wire.connect().await?;
    let (mut guest_end, mut stream) = stream.into_split();
    let pump = async {
        match input {
            Input::Fifo(fifo, path) => pump_fifo(fifo, path, &mut stream, terminal, close).await,
            Input::File(file) => pump_file(file, &mut stream).await,
        }
    };
    let result = tokio::select! {
        result = pump => result,
        () = closed(&mut guest_end) => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!("Input stream ended early: {error}");
    }
    // Half-close: the process sees the end of its stdin after the last byte.
    let _ = stream.shutdown().await;
    closed(&mut guest_end).await;
    Ok(())
}

async fn pump_fifo(
    mut fifo: pipe::Receiver,
    path: PathBuf,
    stream: &mut unix::OwnedWriteHalf,
    terminal: bool,
    close: &Notify,
) -> io::Result<()> {
    tokio::select! {
        ready = fifo.readable() => ready?,
        () = close.notified() => return drain(&fifo, stream).await,
    }
    // Only now: most processes are never written to.
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = tokio::select! {
            count = fifo.read(&mut buffer) => count?,
            () = close.notified() => return drain(&fifo, stream).await,
        };
        if count > 0 {
            stream.write_all(&buffer[..count]).await?;
        } else if terminal {
            fifo = open_reader(&path)?;
        } else {
            return Ok(());
        }
    }
}

/// Passes on what is in the FIFO now: written before the close, it still counts. Reads without
/// the runtime, which may not have been told of it yet.
async fn drain(fifo: &pipe::Receiver, stream: &mut unix::OwnedWriteHalf) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match rustix::io::read(fifo, &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Ok(count) => stream.write_all(&buffer[..count]).await?,
            Err(errno) => return Err(errno.into()),
        }
    }
}

async fn pump_file(mut file: std::fs::File, stream: &mut unix::OwnedWriteHalf) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
    }
}

/// Resolves when the guest has closed the stream; what it may send is thrown away.
async fn closed(guest_end: &mut unix::OwnedReadHalf) {
    let mut byte = [0; 1];
    while matches!(guest_end.read(&mut byte).await, Ok(1..)) {}
}
