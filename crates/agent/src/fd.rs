//! Asynchronous reading and writing of any pollable descriptor: pipe, terminal or socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor registered with the runtime, in non-blocking mode.
#[derive(Debug)]
pub struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    /// Takes `fd` over. Must be called within a runtime.
    ///
    /// # Errors
    /// When `fd` cannot be made non-blocking or cannot be polled (a regular file, say).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Self::register(fd)
    }

    /// Another descriptor of the same open file.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn duplicate(&self) -> io::Result<Self> {
        Self::register(self.0.get_ref().try_clone()?)
    }

    fn register(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an OwnedFd always answers with the same descriptor, which stays open for as
        // long as the OwnedFd, and that only the AsyncFd drops, after deregistering it.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// Reads what there is, at least one byte; 0 at the end.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .async_io(Interest::READABLE, |fd| {
                nix::unistd::read(fd, buffer).map_err(io::Error::from)
            })
            .await
    }

    /// Writes as much of `data` as there is room for, at least one byte.
    ///
    /// # Errors
    /// Those of write(2).
    pub async fn write(&self, data: &[u8]) -> io::Result<usize> {
        self.0
            .async_io(Interest::WRITABLE, |fd| {
                nix::unistd::write(fd, data).map_err(io::Error::from)
            })
            .await
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// Those of write(2); part of the data may then have been written.
    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = self.write(data).await?;
            data = &data[written..];
        }
        Ok(())
    }

    /// Waits until `op` does not answer `EAGAIN`, for calls other than read and write.
    ///
    /// # Errors
    /// What `op` fails with.
    pub async fn when_readable<T>(
        &self,
        mut op: impl FnMut(BorrowedFd<'_>) -> nix::Result<T>,
    ) -> io::Result<T> {
        self.0
            .async_io(Interest::READABLE, |fd| {
                op(fd.as_fd()).map_err(io::Error::from)
            })
            .await
    }

    /// Waits until the descriptor can be written to.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn writable(&self) -> io::Result<()> {
        self.0.writable().await.map(drop)
    }

    /// Waits until the other side of a connection has closed it. Data that comes is discarded; a
    /// side that merely stopped sending has not closed.
    pub async fn closed(&self) {
        let mut scrap = [0; 512];
        loop {
            match self.read(&mut scrap).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => return,
            }
        }
        if !self.hung_up() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends both directions of a connection; data on its way to the peer still arrives.
    ///
    /// # Errors
    /// Those of shutdown(2).
    pub fn shutdown(&self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Both)?)
    }

    /// How many bytes can be read at once (`FIONREAD`).
    ///
    /// # Errors
    /// Those of ioctl(2).
    pub fn available(&self) -> io::Result<usize> {
        let mut count: libc::c_int = 0;
        // SAFETY: FIONREAD writes one int to the pointer, which is valid for the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        Errno::result(result)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::empty())];
        // An error here cannot be told from a connection that works.
        let _ = poll(&mut fds, PollTimeout::ZERO);
        fds[0]
            .revents()
            .is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// A pipe: read end, write end; both blocking and closed on exec.
///
/// # Errors
/// When the process has no descriptors left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}
