//! A process's stdin, stdout and stderr: pipes or a terminal on its side, connections to the host
//! on the other, and a task per stream that copies between them.
//!
//! A stream has at most one buffer of [`BUFFER`] bytes; a host that does not read stalls that
//! stream and nothing else.

mod connect;
mod input;
mod output;
mod slot;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::watch;

use crate::fd::{Fd, pipe};
use crate::tracker::Tracker;
pub use connect::{ConnectError, Connections, Pending, Ports};
use output::Output;
use slot::Slot;

/// Size of a copy buffer; that of a pipe.
const BUFFER: usize = 64 * 1024;

/// The ends of a process's pipes that the process gets; none where it gets `/dev/null`.
#[derive(Debug, Default)]
pub struct ChildEnds {
    /// To read from.
    pub stdin: Option<OwnedFd>,
    /// To write to.
    pub stdout: Option<OwnedFd>,
    /// To write to.
    pub stderr: Option<OwnedFd>,
}

/// Our ends of a process's pipes with the connections that belong to them, copying not started.
#[derive(Debug, Default)]
pub struct Plumbing {
    stdin: Option<(Fd, Fd)>,
    stdout: Option<(Fd, Fd)>,
    stderr: Option<(Fd, Fd)>,
}

impl Plumbing {
    /// Makes a pipe for each connection.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn pipes(connections: Connections) -> io::Result<(Self, ChildEnds)> {
        let mut ours = Self::default();
        let mut child = ChildEnds::default();
        if let Some(connection) = connections.stdin {
            let (read, write) = pipe()?;
            ours.stdin = Some((Fd::new(write)?, connection));
            child.stdin = Some(read);
        }
        if let Some(connection) = connections.stdout {
            let (read, write) = pipe()?;
            ours.stdout = Some((Fd::new(read)?, connection));
            child.stdout = Some(write);
        }
        if let Some(connection) = connections.stderr {
            let (read, write) = pipe()?;
            ours.stderr = Some((Fd::new(read)?, connection));
            child.stderr = Some(write);
        }
        Ok((ours, child))
    }

    /// Joins a terminal's two directions to the connections. Without a connection for its output
    /// nobody reads the terminal, as with a pipe nobody reads.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn terminal(connections: Connections, terminal: &Fd) -> io::Result<Self> {
        let side = |connection: Option<Fd>| -> io::Result<Option<(Fd, Fd)>> {
            connection
                .map(|connection| Ok((terminal.duplicate()?, connection)))
                .transpose()
        };
        Ok(Self {
            stdin: side(connections.stdin)?,
            stdout: side(connections.stdout)?,
            stderr: None,
        })
    }

    /// Starts copying. `tracker` counts the output streams until all of their data is sent.
    #[must_use]
    pub fn start(self, tracker: &Tracker) -> ProcessIo {
        let exited = watch::Sender::new(false);
        let output = |stream: Option<(Fd, Fd)>| {
            stream.map(|(source, connection)| {
                let (output, copy) = Output::new(source, connection, exited.subscribe());
                let underway = tracker.enter();
                tokio::spawn(async move {
                    copy.await;
                    drop(underway);
                });
                output
            })
        };
        let stdout = output(self.stdout);
        let stderr = output(self.stderr);
        let stdin = self.stdin.map(|(target, connection)| {
            let slot = Slot::new(connection);
            tokio::spawn(input::copy(target, Arc::clone(&slot), exited.subscribe()));
            slot
        });
        ProcessIo {
            stdin,
            stdout,
            stderr,
            exited,
        }
    }
}

/// How many bytes were written to each output stream; 0 for one that is not wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// To stdout, or the terminal.
    pub stdout: u64,
    /// To stderr.
    pub stderr: u64,
}

/// The running streams of a process.
#[derive(Debug)]
pub struct ProcessIo {
    stdin: Option<Arc<Slot>>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    exited: watch::Sender<bool>,
}

impl ProcessIo {
    /// The process has ended: its input ends now, its output when all of it is read. Returns what was written so
    /// far.
    pub fn process_exited(&self) -> Written {
        self.exited.send_replace(true);
        let written = |output: &Option<Output>| output.as_ref().map_or(0, Output::written);
        Written {
            stdout: written(&self.stdout),
            stderr: written(&self.stderr),
        }
    }

    /// Nobody will attach any more: streams without a connection end now, the others when their
    /// data is delivered.
    pub fn release(&self) {
        self.slots().for_each(|slot| slot.release());
    }

    /// The caller has no more input. The stream's end closes stdin; this only ends a stream that
    /// the host leaves open.
    pub fn close_stdin(&self) {
        if let Some(slot) = &self.stdin {
            slot.request_close();
        }
    }

    /// Whether no stream has lost its connection.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.slots().all(|slot| slot.is_healthy())
    }

    /// Continues the streams on other connections. Streams that the process never had are ignored.
    pub fn attach(&self, connections: Connections) {
        let pairs = [
            (self.stdin.as_ref(), connections.stdin),
            (self.stdout.as_ref().map(Output::slot), connections.stdout),
            (self.stderr.as_ref().map(Output::slot), connections.stderr),
        ];
        for (slot, connection) in pairs {
            if let (Some(slot), Some(connection)) = (slot, connection) {
                slot.attach(connection);
            }
        }
    }

    fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        let outputs = [&self.stdout, &self.stderr].into_iter().flatten();
        self.stdin.iter().chain(outputs.map(Output::slot))
    }
}

/// Waits until `exited` is true, or nobody is left to say so.
async fn ended(exited: &mut watch::Receiver<bool>) {
    let _ = exited.wait_for(|exited| *exited).await;
}
