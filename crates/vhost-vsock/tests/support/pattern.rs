//! The data both ends send and check: every byte is known from its place in
//! the stream and the stream's seed, so loss, repetition and mix-ups show.

use std::io::{self, Read, Write};

/// A prime, so that the pattern never lines up with buffers or packets.
const PERIOD: usize = 65_521;
const CHUNK: usize = 64 * 1024;

/// One stream's data.
pub struct Pattern {
    block: Vec<u8>,
    at: usize,
}

impl Pattern {
    /// The data of the stream `seed`, from its start.
    pub fn new(seed: u64) -> Pattern {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let period = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        });
        let period: Vec<u8> = period.take(PERIOD).collect();
        let block = period
            .iter()
            .copied()
            .cycle()
            .take(PERIOD + CHUNK)
            .collect();
        let at = usize::try_from(seed * 7_919 % 65_521).unwrap_or(0);
        Pattern { block, at }
    }

    fn next(&mut self, len: usize) -> &[u8] {
        let start = self.at;
        self.at = (start + len) % PERIOD;
        &self.block[start..start + len]
    }

    /// Writes the next `len` bytes to `out`, up to `CHUNK` at a time.
    pub fn send(&mut self, out: &mut impl Write, len: u64) -> io::Result<()> {
        let mut left = len;
        while left > 0 {
            let chunk = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            out.write_all(self.next(chunk))?;
            left -= chunk as u64;
        }
        Ok(())
    }

    /// Reads `input` to its end and returns how many bytes came, or an
    /// `InvalidData` error at the first that differ.
    pub fn check(&mut self, input: &mut impl Read) -> io::Result<u64> {
        self.check_up_to(input, u64::MAX)
    }

    /// As [`Pattern::check`], but stops after `limit` bytes.
    pub fn check_up_to(&mut self, input: &mut impl Read, limit: u64) -> io::Result<u64> {
        let mut buffer = vec![0; CHUNK];
        let mut total = 0;
        while total < limit {
            let want = usize::try_from(limit - total).unwrap_or(CHUNK).min(CHUNK);
            let len = input.read(&mut buffer[..want])?;
            if len == 0 {
                break;
            }
            if buffer[..len] != *self.next(len) {
                let text = format!("wrong data within {len} bytes after {total}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            total += len as u64;
        }
        Ok(total)
    }
}
