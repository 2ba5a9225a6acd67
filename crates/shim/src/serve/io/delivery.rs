//! How far the output of a process has come on its way to whoever reads it.
//!
//! A client of containerd may close its ends of the FIFOs as soon as it learns that the process has ended (those up
//! to 1.6.20 do, `ctr` among them). So that is not told before the output has been read.

use std::time::Duration;

use tokio::sync::watch;

/// How long a reader may read nothing, although there is something, before it is taken for one that never will.
pub(super) const READER_BOUND: Duration = Duration::from_secs(10);
/// How long the guest may be silent although it owes something: its VMM may hardly get to run.
const OWED_BOUND: Duration = Duration::from_secs(30);
/// How long the guest may be silent before what an ended process said is taken to be here, although its stream is
/// open still: a child that lives on may have it. For who cannot tell how much was said.
const GUEST_BOUND: Duration = Duration::from_secs(2);
/// How long it may take when the guest cannot tell how much was said: it could go on for ever.
const TOTAL_BOUND: Duration = Duration::from_secs(30);
/// Most bytes that a guest may owe when its process ends: more than all buffers in between hold.
const MAX_OWED: u64 = 4 << 20;

/// How many bytes a process wrote to stdout, or its terminal, and to stderr.
pub type Written = [u64; 2];

/// What one stream waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// More from the guest, or its end: the process has ended, and all that came was read.
    Guest,
    /// The reader, for which there may be something.
    Reader,
    /// A reader, for which there is something: nobody has opened the FIFO.
    Nobody,
    /// Nothing: it was closed, or is not wanted.
    Done,
}

/// The progress of a process's output streams.
#[derive(Debug, Clone)]
pub struct Delivery(watch::Sender<[Stream; 2]>);

/// One stream's part of a [`Delivery`]. Dropping it says that the stream is done.
#[derive(Debug)]
pub struct Part {
    all: Delivery,
    index: usize,
}

/// One stream. Every change, also of a stage to itself, is progress.
#[derive(Debug, Clone, Copy)]
struct Stream {
    stage: Stage,
    /// Bytes that came from the guest.
    came: u64,
    /// Bytes of them that were read.
    read: u64,
    /// What the process had written when it ended, if that is known.
    written: Option<u64>,
    /// A terminal's: of what was written to it the guest knows only a part.
    terminal: bool,
}

impl Delivery {
    /// Without a stream that is wanted.
    pub fn new(terminal: bool) -> Self {
        let none = Stream {
            stage: Stage::Done,
            came: 0,
            read: 0,
            written: None,
            terminal,
        };
        Self(watch::Sender::new([none; 2]))
    }

    /// The stream is wanted: 0 for stdout, or the terminal, 1 for stderr.
    pub fn part(&self, index: usize) -> Part {
        let all = self.clone();
        let part = Part { all, index };
        part.set(Stage::Reader);
        part
    }

    /// The process has ended. `written` is what it said before, if the guest can tell.
    pub fn process_ended(&self, written: Option<Written>) {
        self.0.send_modify(|streams| {
            for (index, stream) in streams.iter_mut().enumerate() {
                let most = stream.came.saturating_add(MAX_OWED);
                let known = written.map(|written| written[index].min(most));
                stream.written = stream.written.or(known);
            }
        });
    }

    /// Waits until all that a process said before its end was read, as far as anybody reads it.
    pub async fn finished(&self) {
        if self.0.borrow().iter().all(|s| s.written.is_some()) {
            self.settled().await;
        } else {
            self.finished_in_time().await;
        }
    }

    /// The same, with a bound whatever the guest says. Answers whether everything was read.
    pub async fn finished_in_time(&self) -> bool {
        let _ = tokio::time::timeout(TOTAL_BOUND, self.settled()).await;
        let mut streams = self.0.borrow().into_iter();
        streams.all(|s| s.stage == Stage::Done || s.is_complete())
    }

    async fn settled(&self) {
        let mut streams = self.0.subscribe();
        loop {
            let bound = streams
                .borrow_and_update()
                .iter()
                .filter_map(Stream::bound)
                .max();
            let Some(bound) = bound else {
                return;
            };
            if tokio::time::timeout(bound, streams.changed())
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

impl Stream {
    /// How long to wait for its next change; `None`: there is nothing to wait for.
    fn bound(&self) -> Option<Duration> {
        match self.stage {
            Stage::Nobody | Stage::Done => None,
            Stage::Guest if self.owes() => Some(OWED_BOUND),
            Stage::Guest | Stage::Reader if self.is_complete() => None,
            Stage::Guest => Some(GUEST_BOUND),
            Stage::Reader => Some(READER_BOUND),
        }
    }

    /// Whether something was written that was not read yet, as far as that is known.
    fn owes(&self) -> bool {
        self.written.is_some_and(|written| self.read < written)
    }

    /// Whether all was read that the process said before its end; its stream may be open still.
    fn is_complete(&self) -> bool {
        self.written.is_some() && !self.owes() && !self.terminal
    }
}

impl Part {
    /// The stream's stage now; the same as before means that it has come further.
    pub fn set(&self, stage: Stage) {
        self.change(|stream| stream.stage = stage);
    }

    /// More bytes came from the guest.
    pub fn came(&self, count: usize) {
        self.change(|stream| stream.came += count as u64);
    }

    /// All that came was read but `left` bytes.
    pub fn read_but(&self, left: u64) {
        self.change(|stream| stream.read = stream.came.saturating_sub(left));
    }

    fn change(&self, change: impl FnOnce(&mut Stream)) {
        self.all
            .0
            .send_modify(|streams| change(&mut streams[self.index]));
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(Stage::Done);
    }
}
