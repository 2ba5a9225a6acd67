//! Reading the tar stream in which a guest sends what a container wrote.
//!
//! The guest is not trusted, so nothing is believed: every length has a bound before memory is taken for it,
//! and what is not understood ends the reading. Understood are POSIX ustar headers, pax records
//! (POSIX.1-2017, "pax Interchange Format", with `SCHILY.xattr` for extended attributes) and sparse files in
//! GNU tar's old format.

use std::io::{self, Read};

use super::header::Header;
use super::pax::Records;

/// Unit of everything in the stream.
pub(super) const BLOCK: usize = 512;
/// Most bytes of the pax records of one entry: a path, a link target, and 64 KiB of attributes with room.
const MAX_RECORDS: u64 = 256 << 10;
/// Most pieces of one sparse file.
const MAX_PIECES: usize = 4096;
/// Longest path or link target (`PATH_MAX`).
const MAX_PATH: usize = 4096;

/// An entry without its data.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permissions with setuid, setgid and sticky bit.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Directory,
    /// A file of `size` bytes, zeros except in the pieces, whose data follows.
    File {
        size: u64,
        pieces: Vec<Piece>,
    },
    Symlink(Vec<u8>),
    /// Another name of an earlier entry.
    HardLink(Vec<u8>),
    /// A character device with this number.
    CharacterDevice {
        major: u32,
        minor: u32,
    },
    /// A block device, FIFO or socket: of no interest.
    Other,
}

/// A part of a file that has data, in bytes. Pieces are in order and do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What is wrong with a stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The connection.
    #[error("The stream cannot be read")]
    Read(#[source] io::Error),
    /// It ends before the end of the archive.
    #[error("The stream ends early")]
    Truncated,
    /// Not a header.
    #[error("The stream holds something other than a tar header: {0}")]
    Header(&'static str),
    /// More than anything sensible needs.
    #[error("The stream's {what} is larger than {limit}")]
    TooLong {
        /// What.
        what: &'static str,
        /// In bytes or pieces.
        limit: u64,
    },
}

/// Reads entries one after another.
#[derive(Debug)]
pub(super) struct Reader<R> {
    input: R,
    /// Data of the current entry that was not read yet, and the padding after it.
    left: u64,
    padding: u64,
    /// See [`Reader::headers`].
    headers: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
            headers: 0,
        }
    }

    /// Bytes that the last entry took besides its data: headers, with its path, link target and attributes,
    /// and the map of a sparse file.
    pub(super) fn headers(&self) -> u64 {
        self.headers
    }

    /// The next entry; `None` at the end of the archive. Data of the last one must have been read.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip()?;
        self.headers = 0;
        let mut records = None;
        loop {
            let block = self.block()?;
            if is_zero(&block) {
                // Two such blocks end an archive; what follows is nobody's business.
                return if is_zero(&self.block()?) {
                    Ok(None)
                } else {
                    Err(TarError::Header("an end that is none"))
                };
            }
            let header = Header::check(&block)?;
            if header.kind() == b'x' {
                // Else there could be any number of them, and never an entry.
                if records.is_some() {
                    return Err(TarError::Header("two extended headers of one entry"));
                }
                records = Some(self.records(header.number(124, 12)?)?);
                continue;
            }
            let records = records.unwrap_or_default();
            return self.entry(&header, records).map(Some);
        }
    }

    /// Reads the current entry's data.
    pub(super) fn data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let room = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if room == 0 {
            return Ok(0);
        }
        loop {
            match self.input.read(&mut buffer[..room]) {
                Ok(0) => return Err(TarError::Truncated),
                Ok(count) => {
                    self.left -= count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
    }

    fn entry(&mut self, header: &Header<'_>, records: Records) -> Result<Entry, TarError> {
        let size = match records.size {
            Some(size) => size,
            None => header.number(124, 12)?,
        };
        let path = records.path.unwrap_or_else(|| header.name());
        let target = records.target.unwrap_or_else(|| header.text(157, 100));
        let number = |given: Option<u32>, start| match given {
            Some(number) => Ok(number),
            None => header.small(start, 8),
        };
        let kind = match header.kind() {
            b'5' => Kind::Directory,
            b'0' | 0 => {
                let all = Piece {
                    offset: 0,
                    length: size,
                };
                self.expect(size);
                Kind::File {
                    size,
                    pieces: vec![all],
                }
            }
            b'S' => {
                let kind = self.sparse(header, size)?;
                self.expect(size);
                kind
            }
            b'1' => Kind::HardLink(target),
            b'2' => Kind::Symlink(target),
            b'3' => Kind::CharacterDevice {
                major: header.small(329, 8)?,
                minor: header.small(337, 8)?,
            },
            b'4' | b'6' => Kind::Other,
            _ => return Err(TarError::Header("an entry of an unknown kind")),
        };
        if path.len() > MAX_PATH {
            return Err(too_long("path", MAX_PATH as u64));
        }
        let mtime = match records.mtime {
            Some(mtime) => mtime,
            None => (
                i64::try_from(header.number(136, 12)?).unwrap_or(i64::MAX),
                0,
            ),
        };
        Ok(Entry {
            path,
            kind,
            mode: header.small(100, 8)? & 0o7777,
            uid: number(records.uid, 108)?,
            gid: number(records.gid, 116)?,
            mtime,
            xattrs: records.xattrs,
        })
    }

    /// The map of a sparse file of which `stored` bytes follow.
    fn sparse(&mut self, header: &Header<'_>, stored: u64) -> Result<Kind, TarError> {
        let size = header.number(483, 12)?;
        let mut pieces = Vec::new();
        header.pieces(386, 4, &mut pieces)?;
        let mut more = header.0[482] != 0;
        while more {
            if pieces.len() > MAX_PIECES {
                return Err(too_long(
                    "list of a sparse file's pieces",
                    MAX_PIECES as u64,
                ));
            }
            let block = self.block()?;
            let before = pieces.len();
            Header(&block).pieces(0, 21, &mut pieces)?;
            if pieces.len() == before {
                // Else there could be any number of such blocks.
                return Err(TarError::Header("an empty part of a sparse file's map"));
            }
            more = block[504] != 0;
        }
        let mut end = 0;
        let mut sum = 0_u64;
        for piece in &pieces {
            let bad = TarError::Header("a sparse file whose pieces do not fit");
            let Some(next) = piece.offset.checked_add(piece.length) else {
                return Err(bad);
            };
            if piece.offset < end || next > size {
                return Err(bad);
            }
            end = next;
            // Cannot overflow: the pieces lie side by side below `size`.
            sum += piece.length;
        }
        if sum != stored {
            return Err(TarError::Header(
                "a sparse file whose pieces are not its data",
            ));
        }
        Ok(Kind::File { size, pieces })
    }

    fn records(&mut self, length: u64) -> Result<Records, TarError> {
        if length > MAX_RECORDS {
            return Err(too_long("extended header", MAX_RECORDS));
        }
        self.expect(length);
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = self.data(&mut buffer)?;
            if count == 0 {
                break;
            }
            bytes.extend_from_slice(&buffer[..count]);
        }
        self.headers += length;
        self.skip()?;
        Records::parse(&bytes)
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        let over = size % BLOCK as u64;
        self.padding = if over == 0 { 0 } else { BLOCK as u64 - over };
    }

    /// Reads what is left of the current entry.
    fn skip(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 4096];
        while self.left > 0 {
            self.data(&mut buffer)?;
        }
        self.left = std::mem::take(&mut self.padding);
        while self.left > 0 {
            self.data(&mut buffer)?;
        }
        Ok(())
    }

    fn block(&mut self) -> Result<[u8; BLOCK], TarError> {
        let mut block = [0; BLOCK];
        match self.input.read_exact(&mut block) {
            Ok(()) => {
                self.headers += BLOCK as u64;
                Ok(block)
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(TarError::Truncated),
            Err(error) => Err(TarError::Read(error)),
        }
    }
}

fn is_zero(block: &[u8; BLOCK]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn too_long(what: &'static str, limit: u64) -> TarError {
    TarError::TooLong { what, limit }
}

#[cfg(test)]
#[path = "tar_tests.rs"]
pub(super) mod tests;
