//! From a process's stdout, stderr or terminal to the host.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::watch;
use tokio::time::sleep;

use super::slot::{Connected, Slot};
use super::{BUFFER, ended};
use crate::fd::Fd;

/// How long after its end a process's output may stay open in other hands (its children's).
const GRACE: Duration = Duration::from_secs(5);

/// A stream that is being copied, as others see it.
#[derive(Debug)]
pub(super) struct Output {
    slot: Arc<Slot>,
    /// Where the process writes; gone with the copying task, so that its other ends learn of that.
    source: Weak<Fd>,
    taken: Arc<AtomicU64>,
}

impl Output {
    /// The stream and the task that copies it: until the source's end, which is then the stream's.
    ///
    /// Bytes that were read are delivered, if need be over a later connection; while there is none,
    /// they stay in the pipe. `exited` turns true at the process's end: [`GRACE`] later the copy ends
    /// with what is in the pipe by then.
    pub fn new(
        source: Fd,
        connection: Fd,
        exited: watch::Receiver<bool>,
    ) -> (Self, impl Future<Output = ()>) {
        let source = Source {
            fd: Arc::new(source),
            taken: Arc::default(),
        };
        let output = Self {
            slot: Slot::new(connection),
            source: Arc::downgrade(&source.fd),
            taken: Arc::clone(&source.taken),
        };
        let copy = copy(source, Arc::clone(&output.slot), exited);
        (output, copy)
    }

    /// Its place for a connection.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// How many bytes were written to it so far. The copying task, on the same thread, never pauses between taking
    /// some and counting them.
    pub fn written(&self) -> u64 {
        let source = self.source.upgrade();
        let waiting = source.map_or(0, |source| source.available().unwrap_or(0));
        self.taken.load(Ordering::Relaxed) + waiting as u64
    }
}

/// What is copied.
struct Source {
    fd: Arc<Fd>,
    /// Bytes read from it.
    taken: Arc<AtomicU64>,
}

impl Source {
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fd.read(buffer).await?;
        self.taken.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

async fn copy(source: Source, slot: Arc<Slot>, exited: watch::Receiver<bool>) {
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
async fn pump(
    source: &Source,
    slot: &Slot,
    mut exited: watch::Receiver<bool>,
) -> Option<Connected> {
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
                rest = Some(source.fd.available().unwrap_or(0));
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
        let connection = Fd::new(OwnedFd::from(guest)).unwrap();
        nix::unistd::write(&process, b"last words").unwrap();
        drop(process);
        let (_running, exited) = watch::channel(false);
        // It may be held still: the connection with it.
        let (held, copy) = Output::new(Fd::new(source).unwrap(), connection, exited);
        copy.await;
        assert_eq!(held.written(), 10);
        let mut output = String::new();
        host.read_to_string(&mut output).await.unwrap();
        assert_eq!(output, "last words");
        let refused = host.write_all(b"?").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_was_written_is_what_was_taken_and_what_waits() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let (source, process) = pipe().unwrap();
        let connection = Fd::new(OwnedFd::from(guest)).unwrap();
        let (_running, exited) = watch::channel(false);
        let (output, copy) = Output::new(Fd::new(source).unwrap(), connection, exited);
        assert_eq!(output.written(), 0);
        nix::unistd::write(&process, b"five!").unwrap();
        assert_eq!(output.written(), 5);
        let copying = tokio::spawn(copy);
        let first = tokio::task::spawn_blocking(move || {
            let mut first = [0; 5];
            std::io::Read::read_exact(&mut host, &mut first).unwrap();
            (first, host)
        });
        let (first, _host) = first.await.unwrap();
        assert_eq!((&first, output.written()), (b"five!", 5));
        // As much as a pipe holds: the task takes it while we count.
        nix::unistd::write(&process, &[b'.'; BUFFER]).unwrap();
        for _ in 0..3 {
            assert_eq!(output.written(), 5 + BUFFER as u64);
            tokio::task::yield_now().await;
        }
        drop(process);
        copying.await.unwrap();
        assert_eq!(output.written(), 5 + BUFFER as u64);
    }
}
