//! Makes files of a stream's entries, strictly beneath one directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, ftruncate, linkat, lsetxattr, mkdirat, mknodat, open, openat, openat2,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use super::tar::{Entry, Kind, Piece, Reader};
use super::{ImportError, Imported};

/// Most entries of a stream, skipped ones too: more files would not fit the host's own filesystem easily.
const MAX_ENTRIES: u64 = 1 << 24;
/// Most bytes of default ACLs that are kept for directories which are not complete: as deep as an agent goes
/// (200 directories in one another), with the largest ACLs that its filesystem holds (4 KiB).
const MAX_ACLS: usize = 1 << 20;
/// The attribute that gives new files in a directory their ACL.
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// Nominal bytes of sparse files that are accepted whatever the disk's size. Reading such a snapshot takes
/// as long as if they were there.
const MAX_NOMINAL: u64 = 1 << 40;
/// Bytes that are written at once.
const BUFFER: usize = 128 << 10;

/// Unpacks one stream.
pub(super) struct Unpacker {
    root: OwnedFd,
    limit: u64,
    /// Entries that may still come.
    entries_left: u64,
    /// Bytes besides data that may still come.
    headers_left: u64,
    nominal: u64,
    /// Directories whose content is arriving, each within the one before.
    open: Vec<Incomplete>,
    imported: Imported,
}

/// A directory, with what its content would change or be changed by.
struct Incomplete {
    path: PathBuf,
    mtime: (i64, u32),
    /// Files made in a directory that has one would get an ACL that they do not have in the stream.
    default_acl: Option<Vec<u8>>,
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
            entries_left: MAX_ENTRIES,
            headers_left: limit,
            nominal: 0,
            open: Vec::new(),
            imported: Imported::default(),
        })
    }

    /// Reads the whole stream.
    pub(super) fn unpack(mut self, tar: impl Read) -> Result<Imported, ImportError> {
        let mut reader = Reader::new(tar);
        let mut buffer = vec![0; BUFFER];
        while self.next(&mut reader, &mut buffer)? {}
        self.complete(None)?;
        Ok(self.imported)
    }

    /// Brings one entry; whether there was one.
    fn next<R: Read>(
        &mut self,
        reader: &mut Reader<R>,
        buffer: &mut [u8],
    ) -> Result<bool, ImportError> {
        let Some(entry) = reader.next()? else {
            return Ok(false);
        };
        self.count(&entry, reader.headers())?;
        self.entry(&entry, reader, buffer)?;
        Ok(true)
    }

    /// Counts an entry, which took `headers` bytes besides its data, whatever becomes of it.
    fn count(&mut self, entry: &Entry, headers: u64) -> Result<(), ImportError> {
        let too_much = |what, limit| ImportError::TooMuch { what, limit };
        self.entries_left =
            (self.entries_left.checked_sub(1)).ok_or_else(|| too_much("entries", MAX_ENTRIES))?;
        self.headers_left = (self.headers_left.checked_sub(headers))
            .ok_or_else(|| too_much("bytes of names and attributes", self.limit))?;
        let Kind::File { size, pieces } = &entry.kind else {
            return Ok(());
        };
        let data: u64 = pieces.iter().map(|piece| piece.length).sum();
        self.imported.bytes = self.imported.bytes.saturating_add(data);
        if self.imported.bytes > self.limit {
            return Err(too_much("bytes", self.limit));
        }
        self.nominal = self.nominal.saturating_add(*size);
        let nominal = self.limit.max(MAX_NOMINAL);
        if self.nominal > nominal {
            return Err(too_much("bytes", nominal));
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        entry: &Entry,
        reader: &mut Reader<R>,
        buffer: &mut [u8],
    ) -> Result<(), ImportError> {
        let path = clean(&entry.path)?;
        let Some((parent, name)) = split(&path) else {
            // The directory itself, which is there.
            if entry.kind != Kind::Directory {
                return Err(bad_path(&entry.path, "which must be a directory"));
            }
            self.complete(None)?;
            let root = self.beneath(Path::new(""), &entry.path)?;
            let default_acl = self.attributes(&root, OsStr::new("."), entry)?;
            return self.fill(path, entry, default_acl);
        };
        self.complete(Some(parent))?;
        let parent = self.beneath(parent, &entry.path)?;
        let failed = |error: Errno| failed("make", &entry.path, error.into());
        match &entry.kind {
            Kind::Directory => {
                mkdirat(&parent, name, Mode::RWXU).map_err(failed)?;
                let default_acl = self.attributes(&parent, name, entry)?;
                return self.fill(path, entry, default_acl);
            }
            Kind::File { size, pieces } => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
                ftruncate(&file, *size).map_err(failed)?;
                write(&File::from(file), pieces, entry, reader, buffer)?;
            }
            Kind::Symlink(target) => {
                symlinkat(OsStr::from_bytes(target), &parent, name).map_err(failed)?;
            }
            Kind::HardLink(target) => {
                let target = clean(target)?;
                let Some((old_parent, old_name)) = split(&target) else {
                    return Err(bad_path(&entry.path, "which is a link to a directory"));
                };
                let old_parent = self.beneath(old_parent, &entry.path)?;
                linkat(&old_parent, old_name, &parent, name, AtFlags::empty()).map_err(failed)?;
                // It has the attributes of the first.
                self.imported.entries += 1;
                return Ok(());
            }
            Kind::CharacterDevice { major: 0, minor: 0 } => {
                mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(failed)?;
            }
            Kind::CharacterDevice { .. } | Kind::Other => {
                let why = "devices, FIFOs and sockets are not brought back";
                self.imported.skip(&entry.path, why);
                return Ok(());
            }
        }
        self.attributes(&parent, name, entry)?;
        set_time(&parent, name, entry.mtime)
            .map_err(|error| self::failed("set the time of", &entry.path, error.into()))
    }

    /// Content of the directory at `path` can come from now on.
    fn fill(
        &mut self,
        path: PathBuf,
        entry: &Entry,
        default_acl: Option<Vec<u8>>,
    ) -> Result<(), ImportError> {
        self.open.push(Incomplete {
            path,
            mtime: entry.mtime,
            default_acl,
        });
        if self.kept_acls() > MAX_ACLS {
            return Err(ImportError::TooMuch {
                what: "bytes of default ACLs",
                limit: MAX_ACLS as u64,
            });
        }
        Ok(())
    }

    fn kept_acls(&self) -> usize {
        let acls = self.open.iter().filter_map(|dir| dir.default_acl.as_ref());
        acls.map(Vec::len).sum()
    }

    /// Completes the directories that `next`, the one that the next entry lies in, is not part of: all of
    /// them if there is none. A tree is sent depth first; should a directory's content go on later, only the
    /// time that the guest wanted for it is lost.
    fn complete(&mut self, next: Option<&Path>) -> Result<(), ImportError> {
        let is_over = |dir: &mut Incomplete| !next.is_some_and(|next| next.starts_with(&dir.path));
        while let Some(dir) = self.open.pop_if(is_over) {
            let path = dir.path.as_os_str().as_bytes();
            let fd = self.beneath(&dir.path, path)?;
            if let Some(acl) = &dir.default_acl {
                set_attribute(&fd, OsStr::new("."), DEFAULT_ACL, acl)
                    .map_err(|error| failed("set an attribute of", path, error.into()))?;
            }
            set_time(&fd, OsStr::new("."), dir.mtime)
                .map_err(|error| failed("set the time of", path, error.into()))?;
        }
        Ok(())
    }

    /// Opens the directory at `path`, through no link and no mount, for the entry at `sent`.
    fn beneath(&self, path: &Path, sent: &[u8]) -> Result<OwnedFd, ImportError> {
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
            .map_err(|error| failed("find the directory of", sent, error.into()))
    }

    /// Sets owner, permissions and attributes of `name`, which was just made, in the directory `dir`. Answers a
    /// directory's default ACL, which is not set.
    fn attributes(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<Option<Vec<u8>>, ImportError> {
        let failed = |action| move |error: Errno| failed(action, &entry.path, error.into());
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(dir, name, Some(uid), Some(gid), no_follow).map_err(failed("set the owner of"))?;
        if matches!(entry.kind, Kind::File { .. } | Kind::Directory) {
            // After chown, which clears set-id bits.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = openat(dir, name, flags, Mode::empty()).map_err(failed("open"))?;
            fchmod(&opened, Mode::from_raw_mode(entry.mode)).map_err(failed("set the mode of"))?;
        }
        let mut default_acl = None;
        for (attribute, value) in &entry.xattrs {
            if !is_kept(attribute) {
                let attribute = String::from_utf8_lossy(attribute);
                let why = format!("the attribute {attribute} means nothing outside of the guest");
                self.imported.skip(&entry.path, &why);
                continue;
            }
            if attribute == DEFAULT_ACL && entry.kind == Kind::Directory {
                default_acl = Some(value.clone());
                continue;
            }
            set_attribute(dir, name, attribute, value).map_err(failed("set an attribute of"))?;
        }
        self.imported.entries += 1;
        Ok(default_acl)
    }
}

/// Sets an attribute of `name` in the directory `dir`.
fn set_attribute(dir: &OwnedFd, name: &OsStr, attribute: &[u8], value: &[u8]) -> Result<(), Errno> {
    // Through the descriptor's link, but not through one that `name` may be.
    let place = Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(name);
    let attribute = OsStr::from_bytes(attribute);
    lsetxattr(&place, attribute, value, XattrFlags::empty())
}

/// Sets the times of `name` in the directory `dir`: seconds since 1970 and nanoseconds.
fn set_time(dir: &OwnedFd, name: &OsStr, time: (i64, u32)) -> Result<(), Errno> {
    let time = Timespec {
        tv_sec: time.0,
        tv_nsec: time.1.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
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
                .map_err(|error| failed("write", &entry.path, error))?;
            done += count as u64;
        }
    }
    Ok(())
}

/// A path relative to the root, empty for the root itself.
fn clean(path: &[u8]) -> Result<PathBuf, ImportError> {
    let mut clean = PathBuf::new();
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

fn failed(action: &'static str, path: &[u8], error: io::Error) -> ImportError {
    ImportError::Entry {
        action,
        path: String::from_utf8_lossy(path).into_owned(),
        error,
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
