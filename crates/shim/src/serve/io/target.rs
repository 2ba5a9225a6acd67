//! The host's side of a stream.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use super::IoError;

/// Where a process's output goes.
pub enum Output {
    /// A FIFO, open at both ends: a client that leaves and comes back breaks nothing.
    Fifo(pipe::Sender),
    /// A file, written to at its end.
    File(File),
}

/// Where a process's input comes from.
pub enum Input {
    /// A FIFO, with its path, to open it again.
    Fifo(pipe::Receiver, PathBuf),
    /// Anything else that can be read, `/dev/null` say.
    File(File),
}

impl Output {
    /// Opens the output that `uri` names; `None` when it is empty.
    pub fn open(uri: &str) -> Result<Option<Self>, IoError> {
        let Some((path, scheme)) = parse(uri)? else {
            return Ok(None);
        };
        let open = || {
            if scheme == Scheme::Plain && is_fifo(&path)? {
                both_ends(&path).map(Self::Fifo)
            } else {
                let file = OpenOptions::new()
                    .append(true)
                    .create(scheme == Scheme::File)
                    .open(&path)?;
                Ok(Self::File(file))
            }
        };
        open()
            .map(Some)
            .map_err(|source| IoError::Open { path, source })
    }
}

impl Output {
    /// Writes some of `bytes`, which wait for the reader of a FIFO.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Fifo(fifo) => fifo.write(bytes).await,
            Self::File(file) => file.write(bytes),
        }
    }

    /// Bytes that were written and that nobody has read yet; 0 for a file, which is not waited for.
    pub fn unread(&self) -> io::Result<u64> {
        match self {
            Self::Fifo(fifo) => Ok(rustix::io::ioctl_fionread(fifo)?),
            Self::File(_) => Ok(0),
        }
    }

    /// Whether anybody else has the FIFO open for reading.
    pub fn has_reader(&mut self) -> io::Result<bool> {
        let Self::Fifo(fifo) = self else {
            return Ok(true);
        };
        // Only to who does not read it as well does a FIFO tell that it has no reader. What is in it stays, as one
        // of the two is always open; its path may be gone.
        let writing = pipe::OpenOptions::new().open_sender(same_file(fifo))?;
        *fifo = writing;
        let mut polled = [PollFd::new(fifo, PollFlags::OUT)];
        poll(&mut polled, Some(&Timespec::default()))?;
        let alone = polled[0].revents().contains(PollFlags::ERR);
        *fifo = both_ends(&same_file(fifo))?;
        Ok(!alone)
    }
}

/// A path by which an open file can be opened once more.
fn same_file(file: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}

fn both_ends(path: &Path) -> io::Result<pipe::Sender> {
    pipe::OpenOptions::new().read_write(true).open_sender(path)
}

impl Input {
    /// Opens the input that `uri` names; `None` when it is empty.
    pub fn open(uri: &str) -> Result<Option<Self>, IoError> {
        let Some((path, _)) = parse(uri)? else {
            return Ok(None);
        };
        let open = || {
            if is_fifo(&path)? {
                Ok(Self::Fifo(open_reader(&path)?, path.clone()))
            } else {
                File::open(&path).map(Self::File)
            }
        };
        let opened = open();
        opened
            .map(Some)
            .map_err(|source| IoError::Open { path, source })
    }
}

/// Opens a FIFO for reading. End of file comes when a writer was there and the last one left,
/// not before the first.
pub fn open_reader(path: &Path) -> io::Result<pipe::Receiver> {
    pipe::OpenOptions::new().open_receiver(path)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scheme {
    Plain,
    File,
}

fn parse(uri: &str) -> Result<Option<(PathBuf, Scheme)>, IoError> {
    if uri.is_empty() {
        return Ok(None);
    }
    let (path, scheme) = match uri.split_once("://") {
        None | Some(("fifo", _)) => (uri.strip_prefix("fifo://").unwrap_or(uri), Scheme::Plain),
        Some(("file", path)) => (path, Scheme::File),
        Some(_) => return Err(IoError::Scheme(uri.to_owned())),
    };
    // containerd may append parameters to a URI.
    let path = match scheme {
        Scheme::Plain => path,
        Scheme::File => path.split_once('?').map_or(path, |(path, _)| path),
    };
    Ok(Some((PathBuf::from(path), scheme)))
}

fn is_fifo(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.file_type().is_fifo())
}
