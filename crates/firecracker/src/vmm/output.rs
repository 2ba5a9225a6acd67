//! What a VMM writes: its own messages and the guest's serial console.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::Tail;
use crate::tail::{LineCutter, MAX_LINE};

/// Reads `stream` to its end, so that the writer never waits, and keeps its last lines.
pub(super) struct Output {
    stream: Receiver,
    name: &'static str,
    tail: Tail,
    log: bool,
}

impl Output {
    /// `name` is the log's `vmm_stream`.
    ///
    /// # Errors
    /// If the pipe cannot be made non-blocking.
    pub(super) fn new(
        stream: impl Into<OwnedFd>,
        name: &'static str,
        tail: Tail,
        log: bool,
    ) -> io::Result<Self> {
        let stream = Receiver::from_owned_fd(stream.into())?;
        Ok(Self {
            stream,
            name,
            tail,
            log,
        })
    }

    pub(super) async fn drain(mut self) {
        let mut cutter = LineCutter::new(MAX_LINE);
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.stream.read(&mut buffer).await {
            cutter.take(&buffer[..length], |line| self.keep(line));
        }
        cutter.finish(|line| self.keep(line));
    }

    fn keep(&self, line: String) {
        if self.log {
            tracing::debug!(target: "vmm_output", vmm_stream = self.name, "{line}");
        }
        self.tail.push(line);
    }
}
