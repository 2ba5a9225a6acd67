//! Receives a container's terminal from the OCI runtime.
//!
//! The runtime gets the path of a Unix socket (`--console-socket`), makes the terminal inside the
//! container and sends its master over that socket as `SCM_RIGHTS`. Source: runc's
//! `docs/terminals.md`.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixListener;

use crate::fd::Fd;

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The socket could not be made.
    #[error("Cannot listen on the console socket {path}")]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The terminal did not arrive.
    #[error("Cannot receive the terminal from the OCI runtime")]
    Receive(#[source] io::Error),
    /// The runtime sent something else.
    #[error("The OCI runtime sent no terminal over the console socket")]
    NoTerminal,
}

/// A socket at which one terminal can arrive. Its file is removed on drop.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    pub(super) fn bind(path: PathBuf) -> Result<Self, ConsoleError> {
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(ConsoleError::Listen { path, source }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the terminal.
    pub(super) async fn receive(&self) -> Result<Fd, ConsoleError> {
        let (stream, _) = self
            .listener
            .accept()
            .await
            .map_err(ConsoleError::Receive)?;
        let fds = loop {
            stream.readable().await.map_err(ConsoleError::Receive)?;
            match stream.try_io(Interest::READABLE, || receive_fds(stream.as_raw_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break result.map_err(ConsoleError::Receive)?,
            }
        };
        let terminal = fds.into_iter().next().ok_or(ConsoleError::NoTerminal)?;
        Fd::new(terminal).map_err(ConsoleError::Receive)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // It is in a tmpfs of ours and its name is never used again.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive_fds(socket: RawFd) -> io::Result<Vec<OwnedFd>> {
    // The runtime sends the terminal's name along; it does not matter.
    let mut name = [0; 4096];
    let mut data = [IoSliceMut::new(&mut name)];
    let mut space = cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(
        socket,
        &mut data,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just put these descriptors into our table for us to own.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok(fds)
}

nix::ioctl_write_ptr_bad!(
    /// Sets a terminal's size (`TIOCSWINSZ`, ioctl_tty(2)).
    set_window_size,
    libc::TIOCSWINSZ,
    nix::pty::Winsize
);

/// Sets the size of `terminal`.
///
/// # Errors
/// Those of ioctl(2).
pub fn set_size(terminal: &Fd, size: &nix::pty::Winsize) -> io::Result<()> {
    // SAFETY: the kernel reads a winsize from the pointer, which is valid for the call.
    unsafe { set_window_size(terminal.as_fd().as_raw_fd(), size) }?;
    Ok(())
}
