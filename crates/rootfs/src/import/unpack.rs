//! Makes files of a stream's entries, strictly beneath one directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, ftruncate, linkat, lsetxattr, mkdirat, mknodat, open, openat, openat2,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use super::tar::{Entry, Kind, Piece, Reader};
use super::{ImportError, Imported};

/// Least bytes of a disk that an entry takes: more entries than this cannot be real.
const BYTES_PER_ENTRY: u64 = 256;
/// Nominal bytes of sparse files that are accepted whatever the disk's size. Reading such a snapshot takes
/// as long as if they were there.
const MAX_NOMINAL: u64 = 1 << 40;
/// Bytes that are written at once.
const BUFFER: usize = 128 << 10;

/// Unpacks one stream.
pub(super) struct Unpacker {
    root: OwnedFd,
    limit: u64,
    nominal: u64,
    /// Directories, whose permissions and times are set when their content is there.
    directories: Vec<Entry>,
    imported: Imported,
}

impl Unpacker {
    /// Into the empty directory `root`, at most `limit` bytes.
    pub(super) fn new(root: &Path, limit: u64) -> Result<Self, ImportError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = open(root, flags, Mode::empty()).map_err(|error| ImportError::File {
            action: "open",
            path: root.to_owned(),
            error: error.into(),
        })?;
        Ok(Self {
            root,
            limit,
            nominal: 0,
            directories: Vec::new(),
            imported: Imported::default(),
        })
    }

    /// Reads the whole stream.
    pub(super) fn unpack(mut self, tar: impl Read) -> Result<Imported, ImportError> {
        let mut reader = Reader::new(tar);
        let mut buffer = vec![0; BUFFER];
        while let Some(entry) = reader.next()? {
            self.count(&entry)?;
            self.entry(entry, &mut reader, &mut buffer)?;
        }
        while let Some(directory) = self.directories.pop() {
            let path = clean(&directory.path)?;
            let fd = self.beneath(&path, &directory)?;
            self.attributes(&fd, OsStr::new("."), &directory)?;
        }
        Ok(self.imported)
    }

    fn count(&mut self, entry: &Entry) -> Result<(), ImportError> {
        self.imported.entries += 1;
        let most = self.limit / BYTES_PER_ENTRY;
        if self.imported.entries > most {
            return Err(ImportError::TooMuch {
                what: "files",
                limit: most,
            });
        }
        let Kind::File { size, pieces } = &entry.kind else {
            return Ok(());
        };
        let data: u64 = pieces.iter().map(|piece| piece.length).sum();
        self.imported.bytes = self.imported.bytes.saturating_add(data);
        self.nominal = self.nominal.saturating_add(*size);
        let nominal = self.limit.max(MAX_NOMINAL);
        if self.imported.bytes > self.limit || self.nominal > nominal {
            return Err(ImportError::TooMuch {
                what: "bytes",
                limit: if self.nominal > nominal {
                    nominal
                } else {
                    self.limit
                },
            });
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        entry: Entry,
        reader: &mut Reader<R>,
        buffer: &mut [u8],
    ) -> Result<(), ImportError> {
        let path = clean(&entry.path)?;
        let Some((parent, name)) = split(&path) else {
            // The directory itself, which is there.
            if entry.kind != Kind::Directory {
                return Err(bad_path(&entry.path, "which must be a directory"));
            }
            self.directories.push(entry);
            return Ok(());
        };
        let parent = self.beneath(parent, &entry)?;
        let failed = |error: Errno| failed("make", &entry, error.into());
        match &entry.kind {
            Kind::Directory => {
                mkdirat(&parent, name, Mode::RWXU).map_err(failed)?;
                self.directories.push(entry);
                return Ok(());
            }
            Kind::File { size, pieces } => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
                ftruncate(&file, *size).map_err(failed)?;
                write(&File::from(file), pieces, &entry, reader, buffer)?;
            }
            Kind::Symlink(target) => {
                symlinkat(OsStr::from_bytes(target), &parent, name).map_err(failed)?;
            }
            Kind::HardLink(target) => {
                let target = clean(target)?;
                let Some((old_parent, old_name)) = split(&target) else {
                    return Err(bad_path(&entry.path, "which is a link to a directory"));
                };
                let old_parent = self.beneath(old_parent, &entry)?;
                linkat(&old_parent, old_name, &parent, name, AtFlags::empty()).map_err(failed)?;
                // It has the attributes of the first.
                return Ok(());
            }
            Kind::CharacterDevice { major: 0, minor: 0 } => {
                mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(failed)?;
            }
            Kind::CharacterDevice { .. } | Kind::Other => {
                self.imported.entries -= 1;
                let why = "devices, FIFOs and sockets are not brought back";
                self.imported.skip(&entry.path, why);
                return Ok(());
            }
        }
        self.attributes(&parent, name, &entry)
    }

    /// Opens the directory at `path`, through no link and no mount.
    fn beneath(&self, path: &Path, entry: &Entry) -> Result<OwnedFd, ImportError> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        openat2(&self.root, path, flags, Mode::empty(), resolve)
            .map_err(|error| failed("find the directory of", entry, error.into()))
    }

    /// Sets owner, attributes, permissions and time of `name` in the directory `dir`.
    fn attributes(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), ImportError> {
        let failed = |action| move |error: Errno| failed(action, entry, error.into());
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(dir, name, Some(uid), Some(gid), no_follow).map_err(failed("set the owner of"))?;
        if matches!(entry.kind, Kind::File { .. } | Kind::Directory) {
            // After chown, which clears set-id bits.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(dir, name, flags, Mode::empty()).map_err(failed("open"))?;
            fchmod(&opened, Mode::from_raw_mode(entry.mode)).map_err(failed("set the mode of"))?;
        }
        // Through the descriptor's link, but not through one that `name` may be.
        let place = Path::new("/proc/self/fd")
            .join(dir.as_raw_fd().to_string())
            .join(name);
        for (attribute, value) in &entry.xattrs {
            if !is_kept(attribute) {
                let attribute = String::from_utf8_lossy(attribute);
                let why = format!("the attribute {attribute} means nothing outside of the guest");
                self.imported.skip(&entry.path, &why);
                continue;
            }
            lsetxattr(
                &place,
                OsStr::from_bytes(attribute),
                value,
                XattrFlags::empty(),
            )
            .map_err(failed("set an attribute of"))?;
        }
        let time = Timespec {
            tv_sec: entry.mtime.0,
            tv_nsec: entry.mtime.1.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(dir, name, &times, no_follow).map_err(failed("set the time of"))
    }
}

/// Whether an attribute belongs into a snapshot. Overlayfs' notes other than "opaque" refer to other layers
/// (with them, a guest could point at files it never had), labels to the guest's policy.
fn is_kept(attribute: &[u8]) -> bool {
    if let Some(overlay) = attribute.strip_prefix(b"trusted.overlay.") {
        return overlay == b"opaque" || overlay.starts_with(b"overlay.");
    }
    attribute.starts_with(b"user.")
        || attribute.starts_with(b"trusted.")
        || attribute.starts_with(b"system.posix_acl_")
        || attribute == b"security.capability"
}

fn write<R: Read>(
    file: &File,
    pieces: &[Piece],
    entry: &Entry,
    reader: &mut Reader<R>,
    buffer: &mut [u8],
) -> Result<(), ImportError> {
    for piece in pieces {
        let mut done = 0;
        while done < piece.length {
            let left = usize::try_from(piece.length - done).unwrap_or(usize::MAX);
            let room = left.min(buffer.len());
            let count = reader.data(&mut buffer[..room])?;
            file.write_all_at(&buffer[..count], piece.offset + done)
                .map_err(|error| failed("write", entry, error))?;
            done += count as u64;
        }
    }
    Ok(())
}

/// A path relative to the root, empty for the root itself.
fn clean(path: &[u8]) -> Result<std::path::PathBuf, ImportError> {
    let mut clean = std::path::PathBuf::new();
    if path.contains(&0) {
        return Err(bad_path(path, "which has a zero byte"));
    }
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(bad_path(path, "which goes upwards")),
            Component::RootDir | Component::Prefix(_) => {
                return Err(bad_path(path, "which is not relative"));
            }
        }
    }
    Ok(clean)
}

fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    Some((path.parent()?, path.file_name()?))
}

fn bad_path(path: &[u8], why: &'static str) -> ImportError {
    ImportError::Path {
        path: String::from_utf8_lossy(path).into_owned(),
        why,
    }
}

fn failed(action: &'static str, entry: &Entry, error: io::Error) -> ImportError {
    ImportError::Entry {
        action,
        path: String::from_utf8_lossy(&entry.path).into_owned(),
        error,
    }
}
