//! FIFOs that a VMM writes its log and metrics to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use rustix::fs::{CWD, FileType, Mode};
use tokio::net::unix::pipe::OpenOptions;
use tokio::task::JoinHandle;

use crate::Tail;
use crate::source::Source;
use crate::tail::MAX_LINE;

/// Longest line of metrics in bytes: all of them are in one, which grows with every device.
const MAX_METRICS: usize = 64 << 10;

/// Why a FIFO cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FifoError {
    /// It cannot be made.
    #[error("Cannot make the FIFO {}", path.display())]
    Make {
        /// The FIFO.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It cannot be opened.
    #[error("Cannot open the FIFO {}", path.display())]
    Open {
        /// The FIFO.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Reads a FIFO, so that its writer never waits, until it is dropped.
#[derive(Debug)]
pub struct FifoDrain {
    source: Arc<Source>,
    task: JoinHandle<()>,
}

impl FifoDrain {
    /// Makes the FIFO `path` (mode 0600, must not exist) for a VMM's log, whose lines go to `tracing` with their own
    /// level (target `vmm_log`) and are kept for errors. To be called in a tokio runtime.
    ///
    /// # Errors
    /// [`FifoError`].
    pub fn log(path: &Path) -> Result<Self, FifoError> {
        Self::log_to(path, Tail::default())
    }

    /// As [`FifoDrain::log`], with the lines kept in `tail`.
    ///
    /// # Errors
    /// [`FifoError`].
    pub fn log_to(path: &Path, tail: Tail) -> Result<Self, FifoError> {
        Self::start(path, MAX_LINE, tail, log_line)
    }

    /// As [`FifoDrain::log`] for metrics: the lines, JSON each, are kept and go to `tracing` as traces
    /// (target `vmm_metrics`).
    ///
    /// # Errors
    /// [`FifoError`].
    pub fn metrics(path: &Path) -> Result<Self, FifoError> {
        Self::start(
            path,
            MAX_METRICS,
            Tail::default(),
            |line| tracing::trace!(target: "vmm_metrics", "{line}"),
        )
    }

    /// The last lines, oldest first, with what was written until now.
    #[must_use]
    pub fn tail(&self) -> Vec<String> {
        self.shared_tail().lines()
    }

    /// The same, for [`VmmCommand::log`](crate::VmmCommand::log): outlives the drain.
    #[must_use]
    pub fn shared_tail(&self) -> FifoTail {
        FifoTail {
            tail: self.source.tail().clone(),
            source: Arc::downgrade(&self.source),
        }
    }

    fn start(path: &Path, max_line: usize, tail: Tail, each: fn(&str)) -> Result<Self, FifoError> {
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).map_err(|error| {
            FifoError::Make {
                path: path.to_owned(),
                source: error.into(),
            }
        })?;
        // Open for writing too, so that it never ends: the VMM may open it late, or again.
        let receiver = OpenOptions::new().read_write(true).open_receiver(path);
        let receiver = receiver.map_err(|source| {
            // Ours, and unusable; the first error is the one to report.
            let _ = std::fs::remove_file(path);
            FifoError::Open {
                path: path.to_owned(),
                source,
            }
        })?;
        let source = Arc::new(Source::new(receiver, max_line, tail, each));
        let reader = Arc::clone(&source);
        let task = tokio::spawn(async move { reader.drain().await });
        Ok(Self { source, task })
    }
}

impl Drop for FifoDrain {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The last lines that came out of a FIFO.
#[derive(Debug, Clone)]
pub struct FifoTail {
    tail: Tail,
    /// Gone with the drain.
    source: Weak<Source>,
}

impl FifoTail {
    /// The lines, oldest first, with what was written until now: a VMM's last words may be in the FIFO still when
    /// its end is seen.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        if let Some(source) = self.source.upgrade() {
            source.take_available();
        }
        self.tail.lines()
    }
}

/// Logs `<time> [<id>:<thread>:<LEVEL>:...] <text>`, as Firecracker writes it, with its level; but
/// what is only information there, one line for each call of the API, is for debugging here.
fn log_line(line: &str) {
    let level = line
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .and_then(|(origin, _)| origin.split(':').nth(2));
    match level {
        Some("ERROR") => tracing::error!(target: "vmm_log", "{line}"),
        Some("WARN") => tracing::warn!(target: "vmm_log", "{line}"),
        Some("TRACE") => tracing::trace!(target: "vmm_log", "{line}"),
        _ => tracing::debug!(target: "vmm_log", "{line}"),
    }
}
