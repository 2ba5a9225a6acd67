//! The last lines of something that never stops writing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::text;

/// Lines that are kept.
const MAX_LINES: usize = 1000;

/// Bytes that are kept, of all lines together.
const MAX_BYTES: usize = 64 << 10;

/// Longest line in bytes, of a log or a console.
pub(crate) const MAX_LINE: usize = 4096;

/// The last lines of an output: at most 1000, at most 64 KiB, without control characters. Lines have numbers,
/// counted from 1. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lines: Mutex<Lines>,
    /// Number of the last line, for those who wait for the next.
    last: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            lines: Mutex::default(),
            last: watch::Sender::new(0),
        }
    }
}

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<String>,
    bytes: usize,
    /// How many lines there were before the first that is kept.
    dropped: u64,
}

/// A part of a [`Tail`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excerpt {
    /// Consecutive lines, oldest first.
    pub lines: Vec<String>,
    /// Number of the last of them; where there is none, the number that was asked with.
    pub last: u64,
    /// How many lines between the number that was asked with and the first of `lines` are kept no more.
    pub lost: u64,
}

impl Tail {
    /// The lines, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.kept().lines.iter().cloned().collect()
    }

    /// The lines after number `after` (0: all), as many of the oldest of them as `max_bytes` hold, but at least one.
    #[must_use]
    pub fn after(&self, after: u64, max_bytes: usize) -> Excerpt {
        let kept = self.kept();
        let first = after.max(kept.dropped);
        let mut excerpt = Excerpt {
            lines: Vec::new(),
            last: after,
            lost: 0,
        };
        let skip = usize::try_from(first - kept.dropped).unwrap_or(usize::MAX);
        let mut bytes = 0;
        for line in kept.lines.iter().skip(skip) {
            bytes += line.len();
            if bytes > max_bytes && !excerpt.lines.is_empty() {
                break;
            }
            excerpt.lines.push(line.clone());
        }
        if !excerpt.lines.is_empty() {
            excerpt.last = first + excerpt.lines.len() as u64;
            excerpt.lost = first - after;
        }
        excerpt
    }

    /// Waits until there is a line after number `after`.
    pub async fn longer_than(&self, after: u64) {
        // Fails only without a sender, and `self` has it.
        let _ = self
            .shared
            .last
            .subscribe()
            .wait_for(|last| *last > after)
            .await;
    }

    /// Adds a line as it is.
    pub fn push(&self, line: String) {
        let mut kept = self.kept();
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.lines.len() > MAX_LINES || kept.bytes > MAX_BYTES {
            let oldest = kept.lines.pop_front().map_or(0, |line| line.len());
            kept.bytes -= oldest;
            kept.dropped += 1;
        }
        self.shared.last.send_modify(|last| *last += 1);
    }

    fn kept(&self) -> MutexGuard<'_, Lines> {
        self.shared
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Cuts a stream of bytes into clean lines.
#[derive(Debug)]
pub(crate) struct LineCutter {
    partial: Vec<u8>,
    max_line: usize,
}

impl LineCutter {
    /// Lines longer than `max_line` bytes will be cut into several.
    pub(crate) fn new(max_line: usize) -> Self {
        Self {
            partial: Vec::new(),
            max_line,
        }
    }

    /// Takes `bytes` and gives every line that they complete to `each`. Empty lines are left out.
    pub(crate) fn take(&mut self, bytes: &[u8], mut each: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let mut piece = piece;
            while self.partial.len() + piece.len() > self.max_line {
                let (start, rest) = piece.split_at(self.max_line - self.partial.len());
                self.partial.extend_from_slice(start);
                piece = rest;
                self.finish(&mut each);
            }
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.finish(&mut each);
            }
        }
    }

    /// Gives what came after the last newline to `each`.
    pub(crate) fn finish(&mut self, mut each: impl FnMut(String)) {
        let line = text::one_line(&self.partial);
        self.partial.clear();
        if !line.is_empty() {
            each(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let tail = Tail::default();
        for number in 0..MAX_LINES * 2 {
            tail.push(format!("line {number}"));
        }
        let lines = tail.lines();
        assert_eq!(lines.len(), MAX_LINES);
        assert_eq!(lines[MAX_LINES - 1], "line 1999");
        for _ in 0..100 {
            tail.push("x".repeat(MAX_LINE));
        }
        assert_eq!(tail.lines().len(), MAX_BYTES / MAX_LINE);
    }

    #[test]
    fn lines_have_numbers() {
        let tail = Tail::default();
        assert_eq!(tail.after(0, 100), Excerpt::default());
        for line in ["one", "two", "three"] {
            tail.push(line.to_owned());
        }
        let all = tail.after(0, 100);
        assert_eq!((all.lines.len(), all.last, all.lost), (3, 3, 0));
        let some = tail.after(1, 3);
        assert_eq!((&some.lines[..], some.last), (&["two".to_owned()][..], 2));
        let long = tail.after(2, 1);
        assert_eq!((&long.lines[..], long.last), (&["three".to_owned()][..], 3));
        for number in [3, 99] {
            let none = tail.after(number, 100);
            assert_eq!((none.lines.len(), none.last, none.lost), (0, number, 0));
        }
        for _ in 0..MAX_LINES {
            tail.push("more".to_owned());
        }
        let lossy = tail.after(1, 4);
        assert_eq!(
            (&lossy.lines[..], lossy.last, lossy.lost),
            (&["more".to_owned()][..], 4, 2)
        );
    }

    #[tokio::test]
    async fn the_next_line_can_be_waited_for() {
        let tail = Tail::default();
        let writer = tail.clone();
        let (_, ()) = tokio::join!(tail.longer_than(1), async {
            writer.push("one".to_owned());
            tokio::task::yield_now().await;
            writer.push("two".to_owned());
        });
        assert_eq!(tail.after(1, 10).last, 2);
    }

    #[test]
    fn lines_are_cut_wherever_the_reads_end() {
        let mut cutter = LineCutter::new(MAX_LINE);
        let mut lines = Vec::new();
        for chunk in [&b"one\r\ntw"[..], b"o\n\nthr", b"ee"] {
            cutter.take(chunk, |line| lines.push(line));
        }
        cutter.finish(|line| lines.push(line));
        assert_eq!(lines, ["one", "two", "three"]);

        let mut long = Vec::new();
        cutter.take(&[b'x'; 10_000], |line| long.push(line.len()));
        cutter.take(b"\n", |line| long.push(line.len()));
        assert_eq!(long, [4096, 4096, 10_000 - 8192]);
    }
}
