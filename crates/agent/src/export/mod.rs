//! What a container wrote, as a tar stream for the host (`Agent.ExportUpper`).
//!
//! The writable layer is the directory `upper` on the container's own disk, see `fc_rootfs` on the
//! host's side. It is read as it is, beside the overlay, while nobody writes: the caller has the
//! container frozen or ended.

mod tar;
mod walk;
pub(crate) mod xattr;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fc_proto::guest::ExportUpperResponse;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Mutex;
use tokio::time::timeout;
use ttrpc::Code;

use crate::fd::Fd;
use crate::rpc::status;
use crate::transport::Transport;

/// The writable layer, below a container's bundle.
const UPPER: &str = "disk/upper";
/// How long a host that has stopped reading is waited for.
const STALL_BOUND: Duration = Duration::from_secs(30);
/// After the last byte, bound on the host's closing of the connection. Ours is closed then, and what
/// the VMM has not passed on within another two seconds is lost.
const CLOSE_BOUND: Duration = Duration::from_secs(20);
/// Bytes that are sent at once.
const BUFFER: usize = 64 * 1024;
/// Names of skipped files that are told; the others are only counted.
const MAX_SKIPPED: usize = 100;

/// Why a layer could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no writable layer.
    #[error("Container {id:?} has no writable layer: cannot open {path}")]
    NoUpper {
        /// The container.
        id: String,
        /// Where it would be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host does not listen.
    #[error("Cannot connect to the host's port {port} for the export")]
    Connect {
        /// Which.
        port: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("Cannot {action} {path}")]
    Read {
        /// What was tried.
        action: &'static str,
        /// The file, as the container sees it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layer is not self-contained.
    #[error("Cannot export {path}: its attribute {attribute} refers to a layer of the guest")]
    Foreign {
        /// The file, as the container sees it.
        path: PathBuf,
        /// overlayfs's.
        attribute: String,
    },
    /// Directories in directories in directories.
    #[error("Cannot export {path}: directories are nested deeper than {limit}", limit = walk::MAX_DEPTH)]
    TooDeep {
        /// Where, as the container sees it.
        path: PathBuf,
    },
    /// The connection.
    #[error("Cannot send the layer to the host")]
    Send(#[source] io::Error),
}

/// What was left out of a stream.
#[derive(Debug, Default)]
struct Skipped {
    first: Vec<String>,
    count: u64,
}

impl Skipped {
    fn add(&mut self, path: &Path, why: &str) {
        self.count += 1;
        if self.first.len() < MAX_SKIPPED {
            self.first.push(format!("{}: {why}", path.display()));
        }
    }
}

/// Exports one layer at a time.
#[derive(Debug)]
pub struct Exporter {
    transport: Transport,
    /// Directory of all bundles.
    bundles: PathBuf,
    /// Held by the export under way. More than one would occupy the threads that mounting needs too.
    turn: Mutex<()>,
}

impl Exporter {
    /// For the bundles below `bundles`.
    #[must_use]
    pub fn new(transport: Transport, bundles: PathBuf) -> Self {
        Self {
            transport,
            bundles,
            turn: Mutex::default(),
        }
    }

    /// Sends the layer of container `id`, a valid id, to the host's `port`.
    ///
    /// # Errors
    /// See [`ExportError`]; the host then got a stream without an end.
    pub async fn export(&self, id: &str, port: u32) -> Result<ExportUpperResponse, ExportError> {
        let _turn = self.turn.lock().await;
        let upper = self.bundles.join(id).join(UPPER);
        let dir = walk::open_root(&upper).map_err(|source| ExportError::NoUpper {
            id: id.to_owned(),
            path: upper,
            source,
        })?;
        let connection = self
            .transport
            .connect(port)
            .await
            .map_err(|source| ExportError::Connect { port, source })?;
        let connection = Arc::new(connection);
        let out = Outgoing(Arc::clone(&connection));
        let sent = tokio::task::spawn_blocking(move || send(dir, out)).await;
        let skipped = match sent {
            Ok(result) => result?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        // Only the host knows when everything has arrived.
        let _ = timeout(CLOSE_BOUND, connection.closed()).await;
        let mut response = ExportUpperResponse::new();
        response.skipped = skipped.first;
        response.skipped_count = skipped.count;
        Ok(response)
    }
}

fn send(dir: File, out: impl Write) -> Result<Skipped, ExportError> {
    nix::unistd::syncfs(&dir).map_err(|errno| ExportError::Read {
        action: "write back the disk of",
        path: "/".into(),
        source: errno.into(),
    })?;
    walk::walk(dir, BufWriter::with_capacity(BUFFER, out))
}

/// Writes to a connection from a thread that may wait.
struct Outgoing(Arc<Fd>);

impl Write for Outgoing {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            match nix::unistd::write(self.0.as_fd(), data) {
                Err(Errno::EAGAIN) => self.wait()?,
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Outgoing {
    fn wait(&self) -> io::Result<()> {
        let bound = PollTimeout::try_from(STALL_BOUND).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, bound) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the host has stopped reading",
            )),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl From<ExportError> for ttrpc::Error {
    fn from(error: ExportError) -> Self {
        let code = match &error {
            ExportError::NoUpper { .. } => Code::NOT_FOUND,
            ExportError::Foreign { .. } | ExportError::TooDeep { .. } => Code::FAILED_PRECONDITION,
            ExportError::Connect { .. } | ExportError::Send(_) => Code::UNAVAILABLE,
            ExportError::Read { .. } => Code::UNKNOWN,
        };
        status(code, &error)
    }
}
