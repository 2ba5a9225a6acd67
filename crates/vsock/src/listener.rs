//! Connections from the guest to the host.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::unix;

/// Listens for connections that the guest makes to one port of the host.
///
/// The socket is open to its owner only. Its file is removed when the listener is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens on `port` of the VM whose vsock socket is `uds`: on the Unix socket `<uds>_<port>`.
    ///
    /// # Errors
    /// As [`unix::bind`]: in particular [`io::ErrorKind::AddrInUse`] if the port is taken.
    pub fn bind(uds: &Path, port: u32) -> io::Result<Self> {
        let mut name = uds.as_os_str().to_owned();
        name.push(format!("_{port}"));
        let path = PathBuf::from(name);
        let socket = unix::bind(&path)?;
        Ok(Self { socket, path })
    }

    /// The next connection.
    ///
    /// # Errors
    /// As `accept(2)`.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept().await?;
        Ok(stream)
    }

    /// The Unix socket that the VMM connects to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nobody is left to tell: at worst the file goes with the VM's directory.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_port_is_in_the_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let uds = dir.path().join("firecracker.vsock");
        let listener = Listener::bind(&uds, 9001).expect("a listener");
        let path = dir.path().join("firecracker.vsock_9001");
        assert_eq!(listener.path(), path);
        let taken = Listener::bind(&uds, 9001).expect_err("a second listener");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);

        let (connected, accepted) = tokio::join!(unix::connect(&path), listener.accept());
        connected.expect("a connection");
        accepted.expect("its other end");
        drop(listener);
        assert!(!path.exists());
    }
}
