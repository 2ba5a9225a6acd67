//! How far the output of a process has come on its way to whoever reads it.
//!
//! A client of containerd may close its ends of the FIFOs as soon as it learns that the process has ended (those up
//! to 1.6.20 do, `ctr` among them). So that is not told before the output has been read.

use std::time::Duration;

use tokio::sync::watch;

/// How long a reader may read nothing, although there is something, before it is taken for one that never will.
const READER_BOUND: Duration = Duration::from_secs(5);
/// How long the guest may be silent before what an ended process said is taken to be here, although its stream is
/// open still: a child that lives on may have it.
const GUEST_BOUND: Duration = Duration::from_millis(500);
/// How long it all may take. A guest could go on for ever.
const TOTAL_BOUND: Duration = Duration::from_secs(30);

/// What one stream waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// More from the guest, or its end.
    Guest,
    /// The reader, for which there is something.
    Reader,
    /// A reader, for which there is something: nobody has opened the FIFO.
    Nobody,
    /// Nothing: it was closed.
    Done,
}

/// The stages of a process's output streams. Every change, also of one to itself, is progress.
#[derive(Debug, Clone)]
pub struct Delivery(watch::Sender<Vec<Stage>>);

/// One stream's part of a [`Delivery`]. Dropping it says that the stream is done.
#[derive(Debug)]
pub struct Part {
    all: Delivery,
    index: usize,
}

impl Delivery {
    /// Without a stream.
    pub fn new() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }

    /// One more stream.
    pub fn add(&self) -> Part {
        let mut index = 0;
        self.0.send_modify(|stages| {
            index = stages.len();
            stages.push(Stage::Guest);
        });
        let all = self.clone();
        Part { all, index }
    }

    /// Waits until all output of a process that has ended was read, as far as anybody reads it. Answers whether
    /// it was.
    pub async fn finished(&self) -> bool {
        let mut stages = self.0.subscribe();
        let settled = async {
            loop {
                let Some(bound) = bound(&stages.borrow_and_update()) else {
                    return;
                };
                if tokio::time::timeout(bound, stages.changed()).await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(TOTAL_BOUND, settled).await;
        self.0.borrow().iter().all(|stage| *stage == Stage::Done)
    }
}

impl Part {
    /// The stream's stage now; the same as before means that it has come further.
    pub fn set(&self, stage: Stage) {
        self.all.0.send_modify(|stages| stages[self.index] = stage);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(Stage::Done);
    }
}

/// How long to wait for the next change; `None`: there is nothing to wait for.
fn bound(stages: &[Stage]) -> Option<Duration> {
    let any = |stage| stages.contains(&stage);
    match (any(Stage::Reader), any(Stage::Guest)) {
        (true, _) => Some(READER_BOUND),
        (_, true) => Some(GUEST_BOUND),
        _ => None,
    }
}
