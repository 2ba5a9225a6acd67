//! A header of the stream: the fields of one block, in POSIX ustar's places.

use super::tar::{BLOCK, Piece, TarError};

/// A block with a header, or with fields like one's.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Takes a block for a header if its checksum is right.
    pub(super) fn check(block: &'a [u8; BLOCK]) -> Result<Self, TarError> {
        let header = Self(block);
        // Counted with blanks in its own place.
        let others = block[..148].iter().chain(&block[156..]);
        let sum = others.map(|byte| u64::from(*byte)).sum::<u64>() + 8 * u64::from(b' ');
        if header.number(148, 8)? != sum {
            return Err(TarError::Header("a wrong checksum"));
        }
        Ok(header)
    }

    /// What the entry is, as a letter.
    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// A field up to its first zero.
    pub(super) fn text(&self, start: usize, length: usize) -> Vec<u8> {
        let field = &self.0[start..start + length];
        let end = field.iter().position(|byte| *byte == 0).unwrap_or(length);
        field[..end].to_vec()
    }

    /// The path, whose first part may be in a field of its own in POSIX headers.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = self.text(345, 155);
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            return [&prefix, &b"/"[..], &name].concat();
        }
        name
    }

    /// Octal digits, or GNU's binary form.
    pub(super) fn number(&self, start: usize, length: usize) -> Result<u64, TarError> {
        let bad = TarError::Header("a malformed number");
        let field = &self.0[start..start + length];
        if field[0] & 0x80 != 0 {
            let (high, low) = field.split_at(length - 8);
            if high.iter().skip(1).any(|byte| *byte != 0) || field[0] != 0x80 {
                return Err(bad);
            }
            let low = low.try_into().map_err(|_| bad)?;
            return Ok(u64::from_be_bytes(low));
        }
        let digits = field.iter().filter(|byte| !matches!(byte, 0 | b' '));
        let mut number = 0_u64;
        for digit in digits {
            if !(b'0'..=b'7').contains(digit) {
                return Err(bad);
            }
            // Twelve digits of three bits.
            number = number << 3 | u64::from(digit - b'0');
        }
        Ok(number)
    }

    /// A number of 32 bits.
    pub(super) fn small(&self, start: usize, length: usize) -> Result<u32, TarError> {
        let number = self.number(start, length)?;
        u32::try_from(number).map_err(|_| TarError::Header("a number that is too large"))
    }

    /// The pieces of a sparse file, at most `count`, that begin here.
    pub(super) fn pieces(
        &self,
        start: usize,
        count: usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), TarError> {
        for index in 0..count {
            let at = start + 24 * index;
            // Unused ones are empty.
            if self.0[at..at + 24].iter().all(|byte| *byte == 0) {
                break;
            }
            pieces.push(Piece {
                offset: self.number(at, 12)?,
                length: self.number(at + 12, 12)?,
            });
        }
        Ok(())
    }
}
