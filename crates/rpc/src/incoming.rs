//! Connections to a program's sockets: only from the program's own user and group, and counted, so that it
//! knows when its last client has gone.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// How many connections are open.
#[derive(Clone, Debug)]
pub struct Connections(watch::Sender<usize>);

impl Default for Connections {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Connections {
    /// Waits until no connection is open.
    pub async fn all_closed(&self) {
        // Fails only when the sender is gone, and that is `self`.
        let _ = self.0.subscribe().wait_for(|open| *open == 0).await;
    }
}

/// A listener as the stream that a ttrpc server wants.
pub struct Incoming {
    listener: UnixListener,
    connections: Connections,
    /// User and group of this process, and of everybody who may call.
    user: (u32, u32),
}

impl Incoming {
    /// Accepts from `listener`, counting in `connections`.
    pub fn new(listener: StdUnixListener, connections: Connections) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener: UnixListener::from_std(listener)?,
            connections,
            user: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
        })
    }

    fn admit(&self, stream: UnixStream) -> Option<Connection> {
        match stream.peer_cred() {
            Ok(peer) if (peer.uid(), peer.gid()) == self.user => {
                self.connections.0.send_modify(|open| *open += 1);
                Some(Connection {
                    stream,
                    connections: self.connections.clone(),
                })
            }
            Ok(peer) => {
                tracing::warn!(
                    uid = peer.uid(),
                    gid = peer.gid(),
                    "Refused a connection of another user"
                );
                None
            }
            Err(error) => {
                tracing::warn!("Refused a connection whose user is unknown: {error}");
                None
            }
        }
    }
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let accepted = std::task::ready!(self.listener.poll_accept(cx));
            match accepted.map(|(stream, _)| self.admit(stream)) {
                Ok(None) => {}
                Ok(Some(connection)) => return Poll::Ready(Some(Ok(connection))),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    connections: Connections,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.0.send_modify(|open| *open -= 1);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn admits_the_same_user_and_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let connections = Connections::default();
        let listener = StdUnixListener::bind(&path).unwrap();
        let mut incoming = Incoming::new(listener, connections.clone()).unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        let next = poll_fn(|cx| Pin::new(&mut incoming).poll_next(cx)).await;
        let connection = next.unwrap().unwrap();
        assert_eq!(*connections.0.borrow(), 1);
        drop(connection);
        connections.all_closed().await;

        let (uid, gid) = incoming.user;
        for other in [(uid + 1, gid), (uid, gid + 1)] {
            incoming.user = other;
            let mut stranger = UnixStream::connect(&path).await.unwrap();
            // Refusing is to close: the stranger sees it while nothing is admitted.
            let mut byte = [0];
            let (closed, admitted) = tokio::select! {
                count = stranger.read(&mut byte) => (count.unwrap() == 0, false),
                _ = poll_fn(|cx| Pin::new(&mut incoming).poll_next(cx)) => (false, true),
            };
            assert!(closed && !admitted);
        }
    }
}
