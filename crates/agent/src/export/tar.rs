//! Writing a tar stream: POSIX ustar headers with pax records for what they have no room for, and
//! GNU's old format for sparse files, which every reader of today knows.
//!
//! Sources: pax in POSIX.1-2017 (utility `pax`, "pax Interchange Format"), `SCHILY.xattr` records
//! as star and GNU tar write them, sparse entries in GNU tar's manual, "Old GNU Format".

use std::io::{self, Read, Write};

use super::xattr::Xattr;

/// Unit of everything in the stream.
const BLOCK: usize = 512;
/// Largest number in a header's octal field of 12 bytes.
const MAX_OCTAL_12: u64 = 0o77_777_777_777;
/// And in one of 8 bytes.
const MAX_OCTAL_8: u64 = 0o7_777_777;
/// Bytes of a name or link target that a header holds.
const MAX_NAME: usize = 100;
/// Pieces of a sparse file that fit into its header, and into each block that continues it.
const PIECES_IN_HEADER: usize = 4;
const PIECES_IN_BLOCK: usize = 21;

/// What is stored, and what only that kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    Directory,
    /// With as many bytes.
    File(u64),
    /// With `size` bytes, zeros except in the pieces.
    Sparse {
        size: u64,
        pieces: &'a [Piece],
    },
    /// To this target.
    Symlink(&'a [u8]),
    /// Another name of the file stored before under this one.
    HardLink(&'a [u8]),
    /// overlayfs's mark of a deleted name: character device 0/0.
    Whiteout,
}

/// A part of a sparse file that has data, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) path: &'a [u8],
    pub(super) kind: Kind<'a>,
    /// Permissions with setuid, setgid and sticky bit.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(super) mtime: (i64, i64),
    pub(super) xattrs: &'a [Xattr],
}

/// Writes entries to `out`, buffering nothing.
#[derive(Debug)]
pub(super) struct Writer<W>(W);

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W) -> Self {
        Self(out)
    }

    /// Writes an entry's headers. The data of a file, or of a sparse file's pieces one after
    /// another, are to follow with [`Writer::data`].
    pub(super) fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let records = pax_records(entry);
        if !records.is_empty() {
            let mut header = Header::new(b'x');
            header.bytes(0, b"././@PaxHeader");
            header.octal(124, 12, records.len() as u64);
            self.0.write_all(&header.finish())?;
            self.0.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let mut header = Header::new(match entry.kind {
            Kind::Directory => b'5',
            Kind::File(_) => b'0',
            Kind::Sparse { .. } => b'S',
            Kind::Symlink(_) => b'2',
            Kind::HardLink(_) => b'1',
            Kind::Whiteout => b'3',
        });
        header.bytes(0, cut(entry.path));
        header.octal(100, 8, u64::from(entry.mode & 0o7777));
        header.octal(108, 8, u64::from(entry.uid).min(MAX_OCTAL_8));
        header.octal(116, 8, u64::from(entry.gid).min(MAX_OCTAL_8));
        let seconds = u64::try_from(entry.mtime.0).unwrap_or(0);
        header.octal(136, 12, seconds.min(MAX_OCTAL_12));
        match entry.kind {
            Kind::File(size) => header.octal(124, 12, size.min(MAX_OCTAL_12)),
            Kind::Symlink(target) | Kind::HardLink(target) => header.bytes(157, cut(target)),
            Kind::Sparse { size, pieces } => return self.sparse(header, size, pieces),
            Kind::Directory | Kind::Whiteout => {}
        }
        self.0.write_all(&header.finish())
    }

    fn sparse(&mut self, mut header: Header, size: u64, pieces: &[Piece]) -> io::Result<()> {
        header.bytes(257, b"ustar  \0");
        let stored = pieces.iter().map(|piece| piece.length).sum();
        header.number(124, 12, stored);
        header.number(483, 12, size);
        let (first, rest) = pieces.split_at(pieces.len().min(PIECES_IN_HEADER));
        header.pieces(386, first);
        header.bytes(482, &[u8::from(!rest.is_empty())]);
        self.0.write_all(&header.finish())?;
        let mut blocks = rest.chunks(PIECES_IN_BLOCK).peekable();
        while let Some(pieces) = blocks.next() {
            let mut block = Header([0; BLOCK]);
            block.pieces(0, pieces);
            block.bytes(504, &[u8::from(blocks.peek().is_some())]);
            self.0.write_all(&block.0)?;
        }
        Ok(())
    }

    /// Writes exactly `size` bytes of `source`, through `buffer`, with zeros in place of those that
    /// it lacks.
    pub(super) fn data(
        &mut self,
        source: &mut impl Read,
        size: u64,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let room = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = match source.read(&mut buffer[..room]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            let count = if count == 0 {
                buffer[..room].fill(0);
                room
            } else {
                count
            };
            self.0.write_all(&buffer[..count])?;
            left -= count as u64;
        }
        Ok(())
    }

    /// Fills the last block after `size` bytes of data.
    pub(super) fn pad(&mut self, size: u64) -> io::Result<()> {
        let zeros = [0; BLOCK];
        // A remainder of 512 fits.
        let used = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if used > 0 {
            self.0.write_all(&zeros[used..])?;
        }
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.0.write_all(&[0; 2 * BLOCK])?;
        self.0.flush()?;
        Ok(self.0)
    }
}

fn cut(name: &[u8]) -> &[u8] {
    &name[..name.len().min(MAX_NAME)]
}

/// What the header has no room for.
fn pax_records(entry: &Entry<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    if entry.path.len() > MAX_NAME {
        record(&mut records, b"path", entry.path);
    }
    match entry.kind {
        Kind::Symlink(target) | Kind::HardLink(target) if target.len() > MAX_NAME => {
            record(&mut records, b"linkpath", target);
        }
        Kind::File(size) if size > MAX_OCTAL_12 => {
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        _ => {}
    }
    for (key, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if u64::from(id) > MAX_OCTAL_8 {
            record(&mut records, key.as_bytes(), id.to_string().as_bytes());
        }
    }
    let (seconds, nanoseconds) = entry.mtime;
    let plain = u64::try_from(seconds).is_ok_and(|seconds| seconds <= MAX_OCTAL_12);
    if nanoseconds != 0 || !plain {
        record(
            &mut records,
            b"mtime",
            decimal(seconds, nanoseconds).as_bytes(),
        );
    }
    for (name, value) in entry.xattrs {
        record(
            &mut records,
            &[b"SCHILY.xattr.", name.as_slice()].concat(),
            value,
        );
    }
    records
}

/// A time as a decimal number; the kernel counts nanoseconds upwards also before 1970.
fn decimal(seconds: i64, nanoseconds: i64) -> String {
    if seconds < 0 && nanoseconds > 0 {
        let (whole, part) = (-(seconds + 1), 1_000_000_000 - nanoseconds);
        return format!("-{whole}.{part:09}");
    }
    format!("{seconds}.{nanoseconds:09}")
}

/// `<length> <key>=<value>\n`, where the length counts itself too.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = 1 + key.len() + 1 + value.len() + 1;
    let mut length = rest;
    while rest + digits(length) != length {
        length = rest + digits(length);
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

/// A header block.
struct Header([u8; BLOCK]);

impl Header {
    fn new(kind: u8) -> Self {
        let mut header = Self([0; BLOCK]);
        header.octal(100, 8, 0o644);
        for (start, length) in [(108, 8), (116, 8), (124, 12), (136, 12), (329, 8), (337, 8)] {
            header.octal(start, length, 0);
        }
        header.bytes(156, &[kind]);
        header.bytes(257, b"ustar\x0000");
        header
    }

    fn bytes(&mut self, start: usize, bytes: &[u8]) {
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// A number that fits, as octal digits and a zero byte.
    fn octal(&mut self, start: usize, length: usize, number: u64) {
        let digits = length - 1;
        self.bytes(start, format!("{number:0digits$o}\0").as_bytes());
    }

    /// A number of any size: what octal digits cannot hold is written as GNU does, in binary.
    fn number(&mut self, start: usize, length: usize, number: u64) {
        if number <= MAX_OCTAL_12 {
            return self.octal(start, length, number);
        }
        self.bytes(start, &[0x80]);
        self.bytes(start + length - 8, &number.to_be_bytes());
    }

    fn pieces(&mut self, start: usize, pieces: &[Piece]) {
        for (index, piece) in pieces.iter().enumerate() {
            self.number(start + 24 * index, 12, piece.offset);
            self.number(start + 24 * index + 12, 12, piece.length);
        }
    }

    fn finish(mut self) -> [u8; BLOCK] {
        // Counted with blanks in its own place.
        self.bytes(148, b"        ");
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.bytes(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
