//! Goes through a directory tree and writes what is there to a tar stream.
//!
//! Every file is opened relative to its directory and no link is followed, so that no file outside
//! of the tree is ever read. Memory grows with the depth and with the number of files that have
//! further names still to come, not with the number of files.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, OwningIter};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{Whence, lseek};

use super::tar::{Entry, Kind, Piece, Writer};
use super::xattr::{self, Fate, Xattr};
use super::{BUFFER, ExportError, Skipped};

/// Deepest nesting; each level takes two descriptors.
pub(super) const MAX_DEPTH: usize = 200;
/// Pieces of a sparse file that are told apart; what follows is sent as it is, zeros included.
const MAX_PIECES: usize = 1024;
const DIR_FLAGS: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Opens the directory that is to be walked through.
pub(super) fn open_root(path: &Path) -> io::Result<File> {
    Ok(File::from(open(path, DIR_FLAGS, Mode::empty())?))
}

/// Writes the directory and everything below it to `out`. Blocks.
pub(super) fn walk(root: File, out: impl Write) -> Result<Skipped, ExportError> {
    let mut walk = Walk {
        out: Writer::new(out),
        path: Vec::new(),
        links: HashMap::new(),
        skipped: Skipped::default(),
        buffer: vec![0; BUFFER],
    };
    walk.run(OwnedFd::from(root))?;
    walk.out.finish().map_err(ExportError::Send)?;
    Ok(walk.skipped)
}

struct Walk<W> {
    out: Writer<W>,
    /// Of the current file, relative to the root.
    path: Vec<u8>,
    /// Of files with several names: the name they were stored under, and how many are to come.
    links: HashMap<u64, (Vec<u8>, u64)>,
    skipped: Skipped,
    buffer: Vec<u8>,
}

/// A directory whose entries are being visited.
struct Level {
    dir: OwnedFd,
    entries: OwningIter,
    /// Length of its path.
    path: usize,
}

impl<W: Write> Walk<W> {
    fn run(&mut self, root: OwnedFd) -> Result<(), ExportError> {
        let stat = fstat(&root).map_err(|errno| self.error("examine", errno))?;
        let own = CString::new(format!("/proc/self/fd/{}", root.as_raw_fd()));
        // A descriptor's name follows the link in /proc, which the attributes of other files must not.
        let own = own.map_err(|error| self.error("name", error))?;
        let xattrs = self.xattrs(&own, |name| [name, b"/."].concat())?;
        self.path.extend_from_slice(b".");
        self.entry(&stat, Kind::Directory, &xattrs)?;
        self.path.clear();
        let mut levels = vec![self.level(root)?];
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.path);
            let Some(entry) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(|errno| self.error("list", errno))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if level.path > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            if let Some(dir) = self.visit(&level.dir, name)? {
                if levels.len() >= MAX_DEPTH {
                    return Err(ExportError::TooDeep { path: self.shown() });
                }
                levels.push(self.level(dir)?);
            }
        }
        Ok(())
    }

    fn level(&self, dir: OwnedFd) -> Result<Level, ExportError> {
        let list = openat(&dir, ".", DIR_FLAGS, Mode::empty())
            .and_then(Dir::from_fd)
            .map_err(|errno| self.error("list", errno))?;
        Ok(Level {
            dir,
            entries: list.into_iter(),
            path: self.path.len(),
        })
    }

    /// Writes one file; a directory is answered, to go on with.
    fn visit(&mut self, dir: &OwnedFd, name: &CStr) -> Result<Option<OwnedFd>, ExportError> {
        let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| self.error("examine", errno))?;
        let format = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let whiteout = format == SFlag::S_IFCHR && stat.st_rdev == 0;
        let why = match format {
            SFlag::S_IFCHR | SFlag::S_IFBLK if !whiteout => "device nodes are not exported",
            SFlag::S_IFIFO => "FIFOs are not exported",
            SFlag::S_IFSOCK => "sockets are not exported",
            _ => "",
        };
        if !why.is_empty() {
            let shown = self.shown();
            self.skipped.add(&shown, why);
            return Ok(None);
        }
        if format != SFlag::S_IFDIR && stat.st_nlink > 1 && !whiteout && self.linked(&stat)? {
            return Ok(None);
        }
        let place = CString::new(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        let place = place.map_err(|error| self.error("name", error))?;
        let xattrs = self.xattrs(&place, |dir| [dir, b"/", name.to_bytes()].concat())?;
        match format {
            SFlag::S_IFDIR => {
                let opened = openat(dir, name, DIR_FLAGS, Mode::empty());
                let opened = opened.map_err(|errno| self.error("open", errno))?;
                self.entry(&stat, Kind::Directory, &xattrs)?;
                return Ok(Some(opened));
            }
            SFlag::S_IFREG => self.file(dir, name, &stat, &xattrs)?,
            SFlag::S_IFLNK => {
                let target = readlinkat(dir, name).map_err(|errno| self.error("read", errno))?;
                self.entry(&stat, Kind::Symlink(target.as_bytes()), &xattrs)?;
            }
            _ => self.entry(&stat, Kind::Whiteout, &xattrs)?,
        }
        Ok(None)
    }

    /// Writes a further name of a file that was stored already; else remembers its first.
    fn linked(&mut self, stat: &FileStat) -> Result<bool, ExportError> {
        let Some((first, left)) = self.links.get_mut(&stat.st_ino) else {
            #[allow(clippy::useless_conversion, reason = "u32 on other processors")]
            let names = u64::from(stat.st_nlink);
            self.links
                .insert(stat.st_ino, (self.path.clone(), names - 1));
            return Ok(false);
        };
        let first = if *left > 1 {
            *left -= 1;
            first.clone()
        } else {
            let known = self.links.remove(&stat.st_ino);
            known.map(|(first, _)| first).unwrap_or_default()
        };
        self.entry(stat, Kind::HardLink(&first), &[])?;
        Ok(true)
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &CStr,
        stat: &FileStat,
        xattrs: &[Xattr],
    ) -> Result<(), ExportError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(dir, name, flags, Mode::empty());
        let mut file = File::from(file.map_err(|errno| self.error("open", errno))?);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let pieces = if allocated < size {
            pieces(&file, size).map_err(|errno| self.error("find the holes of", errno))?
        } else {
            None
        };
        let whole = [Piece {
            offset: 0,
            length: size,
        }];
        let (kind, pieces) = match &pieces {
            Some(pieces) => (Kind::Sparse { size, pieces }, pieces.as_slice()),
            None => (Kind::File(size), whole.as_slice()),
        };
        self.entry(stat, kind, xattrs)?;
        let mut stored = 0;
        for piece in pieces {
            file.seek(SeekFrom::Start(piece.offset))
                .map_err(|error| self.error("read", error))?;
            let mut source = Source {
                file: &mut file,
                error: None,
            };
            let sent = self.out.data(&mut source, piece.length, &mut self.buffer);
            if let Some(error) = source.error {
                return Err(self.error("read", error));
            }
            sent.map_err(ExportError::Send)?;
            stored += piece.length;
        }
        self.out.pad(stored).map_err(ExportError::Send)
    }

    fn entry(
        &mut self,
        stat: &FileStat,
        kind: Kind<'_>,
        xattrs: &[Xattr],
    ) -> Result<(), ExportError> {
        let entry = Entry {
            path: &self.path,
            kind,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            xattrs,
        };
        self.out.entry(&entry).map_err(ExportError::Send)
    }

    /// The attributes worth keeping of the file that `name` makes of the path of a descriptor.
    fn xattrs(
        &self,
        place: &CStr,
        name: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Result<Vec<Xattr>, ExportError> {
        let read = |error| self.error("read the attributes of", error);
        let path = CString::new(name(place.to_bytes())).map_err(|error| read(error.into()))?;
        let mut kept = Vec::new();
        for name in xattr::list(&path).map_err(read)? {
            match xattr::fate(&name) {
                Fate::Keep => {
                    let value = xattr::get(&path, &name).map_err(read)?;
                    kept.push((name, value));
                }
                Fate::Forget => {}
                Fate::Foreign => {
                    return Err(ExportError::Foreign {
                        path: self.shown(),
                        attribute: String::from_utf8_lossy(&name).into_owned(),
                    });
                }
            }
        }
        Ok(kept)
    }

    fn error(&self, action: &'static str, source: impl Into<io::Error>) -> ExportError {
        ExportError::Read {
            action,
            path: self.shown(),
            source: source.into(),
        }
    }

    /// The current file, as the container sees it.
    fn shown(&self) -> PathBuf {
        Path::new("/").join(OsStr::from_bytes(&self.path))
    }
}

/// Where `file` has data; none when it has no holes.
fn pieces(file: &File, size: u64) -> nix::Result<Option<Vec<Piece>>> {
    let seek = |offset: u64, whence| {
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let found = lseek(file.as_fd(), offset, whence)?;
        Ok(u64::try_from(found).unwrap_or(0).min(size))
    };
    let mut pieces = Vec::new();
    let mut end = 0;
    while end < size {
        let offset = match seek(end, Whence::SeekData) {
            // Nothing but a hole is left.
            Err(Errno::ENXIO) => break,
            result => result?,
        };
        end = if pieces.len() + 1 < MAX_PIECES {
            seek(offset, Whence::SeekHole)?
        } else {
            size
        };
        let length = end - offset;
        pieces.push(Piece { offset, length });
    }
    let whole = matches!(pieces.as_slice(), [Piece { offset: 0, length }] if *length == size);
    if end < size {
        // Readers take the end of the last piece for the file's unless told otherwise.
        pieces.push(Piece {
            offset: size,
            length: 0,
        });
    }
    Ok((!whole).then_some(pieces))
}

/// Tells errors of reading from those of sending.
struct Source<'a> {
    file: &'a mut File,
    error: Option<io::Error>,
}

impl io::Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.error = Some(error);
            }
            kind.into()
        })
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
