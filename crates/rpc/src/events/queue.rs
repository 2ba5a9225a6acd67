//! The events that containerd has not taken yet: bounded by number and by bytes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fc_proto::containerd::shim::event::Envelope;
use fc_proto::protobuf::Message;
use tokio::sync::watch;

/// Events that are kept while containerd does not take them.
const CAPACITY: usize = 4096;
/// Bytes that they may take, encoded.
const CAPACITY_BYTES: u64 = 4 << 20;
/// Longest event, encoded: far from the 4 MiB that a ttrpc message may have.
pub(super) const MAX_EVENT: u64 = 1 << 20;

/// A queue that loses its oldest event rather than grow.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    length: watch::Sender<usize>,
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<(Envelope, u64)>,
    /// Their encoded lengths.
    bytes: u64,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            length: watch::Sender::new(0),
        }
    }

    /// Takes an event, unless it is one that could never be sent.
    pub(super) fn push(&self, event: Envelope) {
        let size = event.compute_size();
        if size > MAX_EVENT {
            tracing::error!(
                topic = event.topic,
                "An event of {size} bytes is too long to be sent; it is lost"
            );
            return;
        }
        let mut waiting = self.lock();
        while waiting.events.len() >= CAPACITY || waiting.bytes + size > CAPACITY_BYTES {
            tracing::warn!("Too many events wait for containerd; the oldest is lost");
            waiting.pop();
        }
        waiting.bytes += size;
        waiting.events.push_back((event, size));
        self.length.send_replace(waiting.events.len());
    }

    /// The oldest event.
    pub(super) fn front(&self) -> Option<Envelope> {
        self.lock().events.front().map(|(event, _)| event.clone())
    }

    /// All events, the oldest first.
    pub(super) fn all(&self) -> Vec<Envelope> {
        let waiting = self.lock();
        waiting.events.iter().map(|(e, _)| e.clone()).collect()
    }

    /// Removes the event that is done with, unless it was pushed out meanwhile.
    pub(super) fn done(&self, event: &Envelope) {
        let mut waiting = self.lock();
        if waiting
            .events
            .front()
            .is_some_and(|(front, _)| front == event)
        {
            waiting.pop();
        }
        self.length.send_replace(waiting.events.len());
    }

    /// How many wait, as that changes.
    pub(super) fn length(&self) -> watch::Receiver<usize> {
        self.length.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic elsewhere does not make the events wrong.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn pop(&mut self) {
        if let Some((_, size)) = self.events.pop_front() {
            self.bytes -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(topic: String) -> Envelope {
        Envelope {
            topic,
            ..Envelope::default()
        }
    }

    fn topics(queue: &Queue) -> Vec<String> {
        let topics = std::iter::from_fn(|| {
            let event = queue.front()?;
            queue.done(&event);
            Some(event.topic)
        });
        topics.collect()
    }

    #[test]
    fn the_oldest_are_lost_when_there_are_too_many() {
        let queue = Queue::new();
        for number in 0..CAPACITY + 2 {
            queue.push(event(number.to_string()));
        }
        let left = topics(&queue);
        assert_eq!(left.len(), CAPACITY);
        assert_eq!(left[0], "2");
    }

    #[test]
    fn the_oldest_are_lost_when_they_are_too_long_together() {
        let queue = Queue::new();
        let long = |letter: &str| event(letter.repeat(900 << 10));
        for letter in ["a", "b", "c", "d", "e"] {
            queue.push(long(letter));
        }
        queue.push(event("last".to_owned()));
        let left = topics(&queue);
        let first: Vec<&str> = left.iter().map(|topic| &topic[..1]).collect();
        assert_eq!(first, ["b", "c", "d", "e", "l"]);
        assert_eq!(queue.lock().bytes, 0);
    }
}
