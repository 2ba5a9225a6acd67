//! The last lines of something that never stops writing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::text;

/// Lines that are kept.
const MAX_LINES: usize = 200;

/// Bytes that are kept, of all lines together.
const MAX_BYTES: usize = 64 << 10;

/// Longest line in bytes, of a log or a console.
pub(crate) const MAX_LINE: usize = 4096;

/// The last lines of an output: at most 200, at most 64 KiB, without control characters. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    lines: Arc<Mutex<Lines>>,
}

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Tail {
    /// The lines, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let kept = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        kept.lines.iter().cloned().collect()
    }

    pub(crate) fn push(&self, line: String) {
        let mut kept = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += line.len();
        kept.lines.push_back(line);
        while kept.lines.len() > MAX_LINES || kept.bytes > MAX_BYTES {
            let oldest = kept.lines.pop_front().map_or(0, |line| line.len());
            kept.bytes -= oldest;
        }
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
        let line = text::clean(&self.partial);
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
        for number in 0..1000 {
            tail.push(format!("line {number}"));
        }
        let lines = tail.lines();
        assert_eq!(lines.len(), MAX_LINES);
        assert_eq!(lines[MAX_LINES - 1], "line 999");
        for _ in 0..100 {
            tail.push("x".repeat(MAX_LINE));
        }
        assert_eq!(tail.lines().len(), MAX_BYTES / MAX_LINE);
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
