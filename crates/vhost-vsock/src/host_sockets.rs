//! The Unix sockets of Firecracker's host-side protocol: one listens at
//! `uds_path` for host programs, and `<uds_path>_<port>` is where the guest's
//! connections to a host port go.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::connect_line::{self, ConnectLine, MAX_LINE};

/// Connects to the program that listens for the guest on `port`.
///
/// Never blocks: a listener whose backlog is full refuses, since waiting would
/// stop every other connection.
pub(crate) fn connect(uds_path: &Path, port: u32) -> Result<UnixStream, Errno> {
    let mut path = OsString::from(uds_path);
    path.push(format!("_{port}"));
    let address = SocketAddrUnix::new(PathBuf::from(path))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

/// The listening socket at `uds_path`.
#[derive(Debug)]
pub(crate) struct HostListener {
    listener: UnixListener,
    /// Given up for a moment when file descriptors run out, so that a waiting
    /// program can be turned away; left waiting it would keep the socket readable.
    spare: Option<OwnedFd>,
}

impl HostListener {
    /// Takes over a bound socket.
    pub(crate) fn new(listener: UnixListener) -> std::io::Result<HostListener> {
        listener.set_nonblocking(true)?;
        Ok(HostListener {
            listener,
            spare: Some(open_spare()?),
        })
    }

    /// The socket, for registering it with epoll.
    pub(crate) fn socket(&self) -> &UnixListener {
        &self.listener
    }

    /// The next waiting host program, `None` when no (more) waits.
    pub(crate) fn accept(&mut self) -> Option<UnixStream> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => return Some(UnixStream::from(socket)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::MFILE | Errno::NFILE) if self.spare.take().is_some() => {
                    tracing::warn!("Out of file descriptors: a host connection is refused");
                    drop(rustix::net::accept_with(&self.listener, flags));
                    self.spare = open_spare().ok();
                }
                Err(Errno::AGAIN) => return None,
                Err(error) => {
                    tracing::warn!(%error, "Cannot accept a host connection");
                    return None;
                }
            }
        }
    }
}

fn open_spare() -> std::io::Result<OwnedFd> {
    Ok(OwnedFd::from(File::open("/dev/null")?))
}

/// Takes the connect line off the front of `stream` once it is there whole.
///
/// Until then, and behind the line, nothing is taken: what follows belongs to
/// the guest. A peer that ends its stream within the line is invalid.
pub(crate) fn read_connect_line(stream: &UnixStream) -> ConnectLine {
    let mut line = [0; MAX_LINE];
    let peeked = loop {
        match rustix::net::recv(stream, &mut line, RecvFlags::PEEK) {
            Ok((0, _)) => return ConnectLine::Invalid,
            Ok((len, _)) => break len,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return ConnectLine::Incomplete,
            Err(_) => return ConnectLine::Invalid,
        }
    };
    let parsed = connect_line::parse(&line[..peeked]);
    if let ConnectLine::Complete { len, .. } = parsed
        && rustix::net::recv(stream, &mut line[..len], RecvFlags::empty()) != Ok((len, len))
    {
        return ConnectLine::Invalid;
    }
    parsed
}
