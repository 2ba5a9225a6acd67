//! A process's streams: between containerd's FIFOs on one side and vsock connections on the other.
//!
//! - [`target`]: what a stream's path on the host means, and how it is opened.
//! - [`wire`]: ports and connections to the guest.
//! - [`output`], [`input`]: the copying.
//! - [`delivery`]: how far output has come.

mod delivery;
mod input;
mod output;
mod target;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

pub use delivery::{Delivery, Written};
use output::Watched;
use target::{Input, Output};
use wire::Wire;
pub use wire::{Listen, Ports};

/// Where containerd wants a process's streams: its own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Path of a FIFO, or empty.
    pub stdin: String,
    /// Path of a FIFO, `file://` URI, or empty.
    pub stdout: String,
    /// Path of a FIFO, `file://` URI, or empty.
    pub stderr: String,
    /// Whether the process has a terminal: one stream both ways, and no stderr.
    pub terminal: bool,
}

/// Why a process's streams could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// A scheme that makes no sense across the VM's border.
    #[error(
        "Stream {0:?} is not supported: this runtime takes FIFOs and file:// (a logging binary would have to run on the host)"
    )]
    Scheme(String),
    /// A FIFO or file could not be opened.
    #[error("Cannot open the process's stream {}", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host's end of a vsock port could not be bound.
    #[error("Cannot listen on vsock port {port}")]
    Listen {
        /// The port.
        port: u32,
        /// Why.
        source: io::Error,
    },
    /// An old agent did not take a stream's connection.
    #[error("Cannot connect a stream to the guest")]
    Connect(#[from] fc_vsock::ConnectError),
}

impl IoError {
    /// Whether the caller asked for something that is not there.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Scheme(_))
    }
}

/// The streams of a process before the guest knows of it: opened on the host's side, and
/// listening, or about to dial.
pub struct Prepared {
    stdin: Option<(Input, Wire)>,
    /// stdout, or the terminal, and stderr.
    outputs: [Option<(Output, Wire)>; 2],
    terminal: bool,
    /// vsock ports of stdin, stdout and stderr; 0 for a stream that is not wanted.
    pub ports: [u32; 3],
}

impl Prepared {
    /// Opens the host's side of `stdio` and takes ports for it.
    pub fn new(stdio: &Stdio, ports: &Ports) -> Result<Self, IoError> {
        let [stdin_port, stdout_port, stderr_port] = ports.take();
        let mut prepared = Self {
            stdin: None,
            outputs: [None, None],
            terminal: stdio.terminal,
            ports: [0; 3],
        };
        if let Some(input) = Input::open(&stdio.stdin)? {
            prepared.stdin = Some((input, ports.wire(stdin_port)?));
            prepared.ports[0] = stdin_port;
        }
        if let Some(output) = Output::open(&stdio.stdout)? {
            prepared.outputs[0] = Some((output, ports.wire(stdout_port)?));
            prepared.ports[1] = stdout_port;
        }
        // A terminal has no stderr of its own.
        if !stdio.terminal
            && let Some(output) = Output::open(&stdio.stderr)?
        {
            prepared.outputs[1] = Some((output, ports.wire(stderr_port)?));
            prepared.ports[2] = stderr_port;
        }
        Ok(prepared)
    }

    /// Begins to connect and copy. Call it before the guest is told of the process: its agent
    /// connects while it creates it. `first_output` runs when the first byte comes.
    pub fn start(self, first_output: impl Fn() + Send + Sync + 'static) -> ProcessIo {
        let close_stdin = Arc::new(Notify::new());
        let delivery = Delivery::new(self.terminal);
        let ended = watch::Sender::new(false);
        let mut outputs = JoinSet::new();
        let first_output = Arc::new(first_output);
        for (index, output) in self.outputs.into_iter().enumerate() {
            let Some((output, wire)) = output else {
                continue;
            };
            let part = delivery.part(index);
            let first_output = Arc::clone(&first_output);
            let ended = ended.subscribe();
            outputs.spawn(async move {
                let watched = Watched {
                    part,
                    ended,
                    first_output: &*first_output,
                };
                if let Err(error) = output::copy(wire, output, watched).await {
                    tracing::warn!("Output stream: {}", fc_errors::chain(&error));
                }
            });
        }
        let mut stdin = JoinSet::new();
        if let Some((input, wire)) = self.stdin {
            let close = Arc::clone(&close_stdin);
            let terminal = self.terminal;
            stdin.spawn(async move {
                if let Err(error) = input::copy(input, wire, terminal, &close).await {
                    tracing::debug!("Input stream: {}", fc_errors::chain(&error));
                }
            });
        }
        ProcessIo {
            stdin,
            _outputs: outputs,
            close_stdin,
            delivery,
            ended,
        }
    }
}

/// The streams of a process. Dropping it ends them at once.
pub struct ProcessIo {
    /// A set of at most one, because a set aborts its tasks when dropped.
    stdin: JoinSet<()>,
    _outputs: JoinSet<()>,
    close_stdin: Arc<Notify>,
    delivery: Delivery,
    ended: watch::Sender<bool>,
}

impl ProcessIo {
    /// Lets stdin end after what is in it now.
    pub fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }

    /// The process has ended, having written as much as the guest says, if it can tell: what is left of that is taken
    /// from the guest at once.
    pub fn process_ended(&self, written: Option<Written>) {
        self.delivery.process_ended(written);
        self.ended.send_replace(true);
    }

    /// How far its output has come.
    pub fn delivery(&self) -> Delivery {
        self.delivery.clone()
    }

    /// Waits until all output of an ended process has been read, as far as anybody reads it.
    pub async fn finish(mut self) {
        self.process_ended(None);
        self.stdin.abort_all();
        if !self.delivery.finished_in_time().await {
            tracing::warn!("Output of an ended process that nobody reads was given up");
        }
    }
}

#[cfg(test)]
mod tests;
