//! Data that both ends of a stream can make: loss, repetition and mix-ups of bytes show.

use std::io::{self, Read, Write};

/// Bytes moved at a time; no power of two, so that it never lines up with packets or buffers.
const CHUNK: usize = 50_021;

/// Endless data that is the same for the same seed.
#[derive(Clone, Debug)]
pub struct Pattern(u64);

impl Pattern {
    /// The data of `seed`, from its start.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Zero is the one state that xorshift never leaves.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Fills `buffer` with the next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *byte = self.0.to_le_bytes()[5];
        }
    }

    /// Writes the next `len` bytes to `out`.
    ///
    /// # Errors
    /// Writing failed.
    pub fn write(&mut self, out: &mut impl Write, len: u64) -> io::Result<()> {
        let mut buffer = [0; CHUNK];
        let mut left = len;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            self.fill(&mut buffer[..part]);
            out.write_all(&buffer[..part])?;
            left -= part as u64;
        }
        Ok(())
    }

    /// Reads `len` bytes of `input` and compares them with the next ones.
    ///
    /// # Errors
    /// Reading failed, or `InvalidData` near the first difference.
    pub fn check(&mut self, input: &mut impl Read, len: u64) -> io::Result<()> {
        let (mut got, mut want) = ([0; CHUNK], [0; CHUNK]);
        let mut at = 0;
        while at < len {
            let part = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
            let read = input.read(&mut got[..part])?;
            if read == 0 {
                let text = format!("the data ended after {at} of {len} bytes");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            self.fill(&mut want[..read]);
            if got[..read] != want[..read] {
                let text = format!("wrong data within {read} bytes after {at}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            at += read as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_what_is_expected() {
        let mut data = Vec::new();
        Pattern::new(7).write(&mut data, 123_457).unwrap();
        Pattern::new(7)
            .check(&mut data.as_slice(), 123_457)
            .unwrap();
        let error = |data: &[u8], seed| {
            let mut input = data;
            Pattern::new(seed)
                .check(&mut input, 123_457)
                .unwrap_err()
                .kind()
        };
        assert_eq!(error(&data, 8), io::ErrorKind::InvalidData);
        assert_eq!(error(&data[..9999], 7), io::ErrorKind::UnexpectedEof);
        data.remove(70_000);
        data.push(0);
        assert_eq!(error(&data, 7), io::ErrorKind::InvalidData);
    }
}
