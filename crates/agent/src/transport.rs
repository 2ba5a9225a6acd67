//! How ports are reached: vsock in a VM, Unix sockets in tests on a host.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, UnixAddr, VsockAddr, accept4, bind,
    connect, getsockopt, listen, socket, sockopt,
};

use crate::fd::Fd;

/// Where ports are.
#[derive(Debug, Clone)]
pub enum Transport {
    /// Our vsock ports, and the host's (cid 2).
    Vsock,
    /// Port N is the socket `N` in this directory, on both sides.
    UnixDir(PathBuf),
}

impl Transport {
    /// Address of our `port`, for ttrpc.
    #[must_use]
    pub fn ttrpc_address(&self, port: u32) -> String {
        match self {
            Self::Vsock => format!("vsock://-1:{port}"),
            Self::UnixDir(dir) => format!("unix://{}/{port}", dir.display()),
        }
    }

    /// Connects to the host's `port`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(&self, port: u32) -> io::Result<Fd> {
        let (fd, address) = self.socket(port, libc::VMADDR_CID_HOST)?;
        let pending = match connect(fd.as_raw_fd(), &*address) {
            Ok(()) => false,
            Err(Errno::EINPROGRESS) => true,
            Err(errno) => return Err(errno.into()),
        };
        let fd = Fd::new(fd)?;
        if pending {
            fd.writable().await?;
            match getsockopt(&fd, sockopt::SocketError)? {
                0 => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
        Ok(fd)
    }

    /// Listens on our `port`. Must be called within a runtime.
    ///
    /// # Errors
    /// When the port is in use.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        let (fd, address) = self.socket(port, libc::VMADDR_CID_ANY)?;
        bind(fd.as_raw_fd(), &*address)?;
        listen(&fd, Backlog::new(1)?)?;
        let path = match self {
            Self::Vsock => None,
            Self::UnixDir(dir) => Some(dir.join(port.to_string())),
        };
        Ok(Listener {
            fd: Fd::new(fd)?,
            path,
        })
    }

    fn socket(&self, port: u32, cid: u32) -> io::Result<(OwnedFd, Box<dyn SockaddrLike + Send>)> {
        let (family, address): (_, Box<dyn SockaddrLike + Send>) = match self {
            Self::Vsock => (AddressFamily::Vsock, Box::new(VsockAddr::new(cid, port))),
            Self::UnixDir(dir) => (
                AddressFamily::Unix,
                Box::new(UnixAddr::new(&dir.join(port.to_string()))?),
            ),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok((socket(family, SockType::Stream, flags, None)?, address))
    }
}

/// A port that the host may connect to, until dropped.
#[derive(Debug)]
pub struct Listener {
    fd: Fd,
    path: Option<PathBuf>,
}

impl Listener {
    /// Waits for a connection.
    ///
    /// # Errors
    /// Those of accept(2).
    pub async fn accept(&self) -> io::Result<Fd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = self
            .fd
            .when_readable(|fd| accept4(fd.as_raw_fd(), flags))
            .await?;
        // SAFETY: accept4 has just made this descriptor and nobody else knows it.
        Fd::new(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Only in tests: a leftover would keep the port from being listened on again.
            let _ = std::fs::remove_file(path);
        }
    }
}
