//! The host's side of a stream.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

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
                let both = pipe::OpenOptions::new()
                    .read_write(true)
                    .open_sender(&path)?;
                Ok(Self::Fifo(both))
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
