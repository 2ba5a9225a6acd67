//! Connections from the host into the guest.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::unix;

/// Time between two attempts of [`connect_retry`], start to start.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long the first attempt of [`connect_retry`] may take that is not answered, and the longest of all: a request
/// sent to a guest whose driver is not up yet is never answered, and one on a busy host may be late. Each is given twice
/// the time of the one before.
const ATTEMPT_BOUNDS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(16)];

/// Longest reply: `OK 4294967295` and the newline.
const MAX_REPLY: usize = 14;

/// Why a connection into the guest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The VM's vsock socket does not exist.
    #[error("The VM has no vsock socket {}: it is not running, or has no vsock device", uds.display())]
    SocketMissing {
        /// The socket.
        uds: PathBuf,
    },
    /// The socket exists, but no VMM listens on it.
    #[error("No VMM listens on the vsock socket {}: the VM has ended", uds.display())]
    VmmRefused {
        /// The socket.
        uds: PathBuf,
    },
    /// The VMM closed the connection without an answer: nothing listens on that port in the guest.
    #[error("Nothing in the guest listens on vsock port {port}")]
    GuestRefused {
        /// The guest's port.
        port: u32,
    },
    /// The VMM answered with something else than `OK <host port>`.
    #[error("The VMM answered {reply:?} to a connection to vsock port {port}")]
    Malformed {
        /// The guest's port.
        port: u32,
        /// The start of the answer, escaped.
        reply: String,
    },
    /// No answer until the deadline.
    #[error("The guest did not answer on vsock port {port} in time")]
    TimedOut {
        /// The guest's port.
        port: u32,
    },
    /// Any other failure of the socket.
    #[error("Cannot connect to vsock port {port} through {}", uds.display())]
    Io {
        /// The socket.
        uds: PathBuf,
        /// The guest's port.
        port: u32,
        /// The system's error.
        source: io::Error,
    },
}

/// Connects to `port` in the guest through the vsock device's socket `uds`, once.
///
/// Not a byte that follows the VMM's answer is consumed: a guest may speak first.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(uds: &Path, port: u32, deadline: Instant) -> Result<UnixStream, ConnectError> {
    timeout_at(deadline, attempt(uds, port))
        .await
        .unwrap_or(Err(ConnectError::TimedOut { port }))
}

/// Connects as [`connect`] does, again every [`RETRY_INTERVAL`] while the guest refuses or does not answer.
///
/// Only for guests that cannot announce themselves: there is nothing to wait for but the port.
///
/// # Errors
/// The [`ConnectError`] of the last attempt that the deadline did not cut short, once `deadline` has passed; at once
/// if the VMM or its socket is gone.
pub async fn connect_retry(
    uds: &Path,
    port: u32,
    deadline: Instant,
) -> Result<UnixStream, ConnectError> {
    let mut before = None;
    let [mut patience, longest] = ATTEMPT_BOUNDS;
    loop {
        let start = Instant::now();
        let bound = start + patience;
        let error = match connect(uds, port, deadline.min(bound)).await {
            Ok(stream) => return Ok(stream),
            Err(ConnectError::TimedOut { .. }) if deadline < bound => {
                return Err(before.unwrap_or(ConnectError::TimedOut { port }));
            }
            Err(error) => error,
        };
        if matches!(error, ConnectError::TimedOut { .. }) {
            patience = (patience * 2).min(longest);
        }
        let again = start + RETRY_INTERVAL;
        match error {
            ConnectError::GuestRefused { .. } | ConnectError::TimedOut { .. }
                if again.max(Instant::now()) < deadline =>
            {
                before = Some(error);
                sleep_until(again).await;
            }
            _ => return Err(error),
        }
    }
}

async fn attempt(uds: &Path, port: u32) -> Result<UnixStream, ConnectError> {
    let mut stream = unix::connect(uds).await.map_err(|source| {
        let uds = uds.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => ConnectError::SocketMissing { uds },
            io::ErrorKind::ConnectionRefused => ConnectError::VmmRefused { uds },
            _ => ConnectError::Io { uds, port, source },
        }
    })?;
    match handshake(&mut stream, port).await {
        Ok(reply) if is_ok(&reply) => Ok(stream),
        Ok(reply) => Err(ConnectError::Malformed {
            port,
            reply: reply.escape_ascii().to_string(),
        }),
        Err(source) => Err(match source.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => ConnectError::GuestRefused { port },
            _ => ConnectError::Io {
                uds: uds.to_owned(),
                port,
                source,
            },
        }),
    }
}

/// Asks for `port` and returns the reply up to its newline, or its first [`MAX_REPLY`] bytes.
async fn handshake(stream: &mut UnixStream, port: u32) -> io::Result<Vec<u8>> {
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    let mut reply = Vec::with_capacity(MAX_REPLY);
    // One byte at a time, because what follows the newline is the caller's.
    while reply.len() < MAX_REPLY {
        match stream.read_u8().await? {
            b'\n' => return Ok(reply),
            byte => reply.push(byte),
        }
    }
    Ok(reply)
}

fn is_ok(reply: &[u8]) -> bool {
    reply.strip_prefix(b"OK ").is_some_and(|port| {
        !port.is_empty()
            && port.iter().all(u8::is_ascii_digit)
            && str::from_utf8(port).is_ok_and(|port| port.parse::<u32>().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    /// A VMM that reads one request, sends `reply` and closes unless told to keep the connection.
    async fn vmm(listener: &UnixListener, reply: &[u8]) -> (Vec<u8>, UnixStream) {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = Vec::new();
        while request.last() != Some(&b'\n') {
            request.push(stream.read_u8().await.expect("a request"));
        }
        stream.write_all(reply).await.expect("a reply");
        (request, stream)
    }

    #[tokio::test]
    async fn bytes_after_the_reply_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let uds = dir.path().join("v.sock");
        let listener = unix::bind(&uds).expect("a listener");
        let (stream, (request, vmm)) = tokio::join!(
            connect(&uds, 10789, soon()),
            vmm(&listener, b"OK 1073741824\nhello from the guest")
        );
        drop(vmm);
        assert_eq!(request, b"CONNECT 10789\n");
        let mut content = String::new();
        let mut stream = stream.expect("a connection");
        stream
            .read_to_string(&mut content)
            .await
            .expect("the guest's bytes");
        assert_eq!(content, "hello from the guest");
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let dir = tempfile::tempdir().expect("a directory");
        let uds = dir.path().join("v.sock");
        let error = connect(&uds, 1, soon()).await.expect_err("no socket");
        assert!(
            matches!(error, ConnectError::SocketMissing { .. }),
            "{error:?}"
        );

        drop(std::os::unix::net::UnixListener::bind(&uds).expect("a socket"));
        let error = connect(&uds, 1, soon()).await.expect_err("nobody listens");
        assert!(
            matches!(error, ConnectError::VmmRefused { .. }),
            "{error:?}"
        );
        std::fs::remove_file(&uds).expect("removal");

        let listener = unix::bind(&uds).expect("a listener");
        let refused = async { drop(vmm(&listener, b"").await) };
        let (result, ()) = tokio::join!(connect(&uds, 1, soon()), refused);
        let error = result.expect_err("closed before OK");
        assert!(
            matches!(error, ConnectError::GuestRefused { port: 1 }),
            "{error:?}"
        );

        for reply in [
            &b"NO 1\n"[..],
            b"OK \n",
            b"OK +1\n",
            b"OK 4294967296\n",
            &[b'O'; 100],
        ] {
            let (result, _) = tokio::join!(connect(&uds, 1, soon()), vmm(&listener, reply));
            let error = result.expect_err("a malformed reply");
            assert!(matches!(error, ConnectError::Malformed { .. }), "{error:?}");
        }

        let deadline = Instant::now() + Duration::from_millis(200);
        let (result, _) = tokio::join!(connect(&uds, 1, deadline), vmm(&listener, b"OK "));
        let error = result.expect_err("half a reply");
        assert!(
            matches!(error, ConnectError::TimedOut { port: 1 }),
            "{error:?}"
        );
    }

    // Time passes only while nobody has anything to do.
    #[tokio::test(start_paused = true)]
    async fn a_refusing_guest_is_asked_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let uds = dir.path().join("v.sock");
        let listener = unix::bind(&uds).expect("a listener");
        let guest = async {
            drop(vmm(&listener, b"").await);
            drop(vmm(&listener, b"").await);
            vmm(&listener, b"OK 5\n").await
        };
        let (stream, _) = tokio::join!(connect_retry(&uds, 7, soon()), guest);
        stream.expect("the third attempt");

        let refusing = async {
            loop {
                drop(vmm(&listener, b"").await);
            }
        };
        let deadline = Instant::now() + Duration::from_millis(250);
        let error = tokio::select! {
            result = connect_retry(&uds, 7, deadline) => result.expect_err("always refused"),
            () = refusing => unreachable!("the guest never stops refusing"),
        };
        assert!(
            matches!(error, ConnectError::GuestRefused { port: 7 }),
            "{error:?}"
        );

        // Refused once and then not answered in what is left of the time: the refusal says more.
        let guest = async {
            drop(vmm(&listener, b"").await);
            let _silent = vmm(&listener, b"").await;
            std::future::pending::<()>().await;
        };
        let deadline = Instant::now() + Duration::from_millis(250);
        let error = tokio::select! {
            result = connect_retry(&uds, 7, deadline) => result.expect_err("no answer"),
            () = guest => unreachable!("the guest stays silent"),
        };
        assert!(
            matches!(error, ConnectError::GuestRefused { port: 7 }),
            "{error:?}"
        );
    }
}
