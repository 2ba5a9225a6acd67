//! Pipes and FIFOs that a VMM writes lines to.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use tokio::net::unix::pipe::Receiver;

use crate::Tail;
use crate::tail::LineCutter;

/// What a pipe holds, in bytes (pipe(7)).
const CAPACITY: usize = 64 << 10;

/// A pipe that is read, so that its writer never waits, and the last lines that came out of it.
pub(crate) struct Source {
    receiver: Receiver,
    cutter: Mutex<LineCutter>,
    tail: Tail,
    each: Box<dyn Fn(&str) + Send + Sync>,
}

impl Source {
    /// Lines longer than `max_line` bytes are cut into several. `each` gets every line before it is kept in `tail`.
    pub(crate) fn new(
        receiver: Receiver,
        max_line: usize,
        tail: Tail,
        each: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self {
            receiver,
            cutter: Mutex::new(LineCutter::new(max_line)),
            tail,
            each: Box::new(each),
        }
    }

    /// The lines that came out, and those that come.
    pub(crate) fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Reads until the last writer is gone.
    pub(crate) async fn drain(&self) {
        // An error means that the runtime shuts down.
        while self.receiver.readable().await.is_ok() {
            if self.take_available() {
                return;
            }
            // A VMM that writes all the time does not keep others from their turn.
            tokio::task::yield_now().await;
        }
    }

    /// Takes what is there, at most as much as a pipe holds. Whether the last writer is gone, and all was taken.
    pub(crate) fn take_available(&self) -> bool {
        let mut cutter = self.cutter.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; 4096];
        for _ in 0..CAPACITY / buffer.len() {
            let read = self.receiver.try_read(&mut buffer);
            // The runtime finds nothing until it was told of something, which may be on its way: the pipe knows.
            let read = read.or_else(|_| rustix::io::read(&self.receiver, &mut buffer));
            match read {
                Ok(0) => {
                    cutter.finish(|line| self.keep(line));
                    return true;
                }
                Ok(length) => cutter.take(&buffer[..length], |line| self.keep(line)),
                // Nothing now; any other failure is the reader's to find.
                Err(_) => return false,
            }
        }
        false
    }

    /// Takes what is there, and what came after the last newline as a line too: its writer has ended.
    pub(crate) fn take_last(&self) {
        self.take_available();
        let mut cutter = self.cutter.lock().unwrap_or_else(PoisonError::into_inner);
        cutter.finish(|line| self.keep(line));
    }

    fn keep(&self, line: String) {
        (self.each)(&line);
        self.tail.push(line);
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("receiver", &self.receiver)
            .finish_non_exhaustive()
    }
}
