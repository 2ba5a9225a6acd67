//! From a process's stdout, stderr or terminal to the host.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::watch;
use tokio::time::sleep;

use super::slot::{Connected, Slot};
use super::{BUFFER, ended};
use crate::fd::Fd;

/// How long after its end a process's output may stay open in other hands (its children's).
const GRACE: Duration = Duration::from_secs(5);

/// Copies until the source's end, then ends the stream.
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
        // Both directions: Firecracker hides from the host that the guest ended only one. What was
        // written is on its way already and comes first. An error means that it has ended anyway.
        let _ = connection.fd.shutdown();
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

/// What reading a terminal answers when no process has it open any more.
fn is_terminal_end(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EIO as i32)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::fd::pipe;

    #[tokio::test]
    async fn the_end_of_output_ends_both_directions() {
        let (host, guest) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let mut host = tokio::net::UnixStream::from_std(host).unwrap();
        let (source, process) = pipe().unwrap();
        let slot = Slot::new(Fd::new(OwnedFd::from(guest)).unwrap());
        // Somebody else may hold the connection still.
        let _held = Arc::clone(&slot);
        nix::unistd::write(&process, b"last words").unwrap();
        drop(process);
        let (_running, exited) = watch::channel(false);
        copy(Fd::new(source).unwrap(), slot, exited).await;
        let mut output = String::new();
        host.read_to_string(&mut output).await.unwrap();
        assert_eq!(output, "last words");
        let refused = host.write_all(b"?").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    }
}
