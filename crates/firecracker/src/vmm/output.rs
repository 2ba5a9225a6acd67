//! What a VMM writes: its own messages and the guest's serial console.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Tail;
use crate::source::Source;
use crate::tail::MAX_LINE;

/// How long the output of a process that ended may be kept open by a process that it left behind.
const LEFT_BEHIND_BOUND: Duration = Duration::from_millis(200);

/// A VMM's standard output and error.
pub(super) struct Output {
    streams: Vec<Arc<Source>>,
    drains: JoinSet<()>,
}

impl Output {
    /// Reads `streams` to their ends, so that the writer never waits, and keeps their last lines in `tail`. Each has
    /// the name that is the log's `vmm_stream`; with `log` the lines go there too.
    ///
    /// # Errors
    /// If a pipe cannot be made non-blocking.
    pub(super) fn read(
        streams: impl IntoIterator<Item = (OwnedFd, &'static str)>,
        tail: &Tail,
        log: bool,
    ) -> io::Result<Self> {
        let mut output = Self {
            streams: Vec::new(),
            drains: JoinSet::new(),
        };
        for (stream, name) in streams {
            let each = move |line: &str| {
                if log {
                    tracing::debug!(target: "vmm_output", vmm_stream = name, "{line}");
                }
            };
            let receiver = Receiver::from_owned_fd(stream)?;
            let source = Arc::new(Source::new(receiver, MAX_LINE, tail.clone(), each));
            output.streams.push(Arc::clone(&source));
            output.drains.spawn(async move { source.drain().await });
        }
        Ok(output)
    }

    /// Keeps the last words of the process, which has ended: they are still in the pipes.
    pub(super) async fn finish(mut self) {
        let all_read = async { while self.drains.join_next().await.is_some() {} };
        if timeout(LEFT_BEHIND_BOUND, all_read).await.is_err() {
            // On a busy host this can be late itself. What the process wrote is there, whoever else may write.
            for stream in &self.streams {
                stream.take_last();
            }
        }
    }
}
