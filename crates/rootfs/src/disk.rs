//! A container's own writable disk.
//!
//! It is formatted once per size, as a template in the cache; each container
//! gets a copy that shares its blocks with the template where the filesystem can
//! (reflink), and else a sparse copy of the few blocks that are in use. Only a
//! snapshot that was written to before gets one made for it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use fc_host_file::{HostFile, HostFileError};
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::cache::{Cache, CacheError, TEMPORARY};
use crate::erofs::RootAttributes;
use crate::mkfs::{self, MkfsError};
use crate::{DISK_UPPER, DISK_WORK};

const MIB: u64 = 1 << 20;
/// Smallest disk: room for the filesystem's own tables and something to write.
const MIN_SIZE: u64 = 8 * MIB;
/// The disk does not outlive its container, and a guest that crashes takes the container with it.
const FEATURES: &str = "^has_journal,^resize_inode";
/// Changes with the way templates are made.
const FORMAT: u32 = 1;

/// An ext4 filesystem with the directories [`DISK_UPPER`] and [`DISK_WORK`]
/// in a file of the container's own, mode 0600, which is removed with the last who keeps it.
#[derive(Debug)]
pub struct Disk {
    file: HostFile,
}

impl Disk {
    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file to attach, locked for writing.
    pub fn file(&self) -> &HostFile {
        &self.file
    }

    /// Makes a disk of `size` bytes at `path`, whose upper directory is empty and looks like `root`.
    pub(crate) fn create(
        cache: &Cache,
        program: &Path,
        path: &Path,
        size: u64,
        root: RootAttributes,
    ) -> Result<Disk, DiskError> {
        let size = whole_mib(size)?;
        // An overlay's root directory has the attributes of its upper directory.
        let name = format!(
            "disk-v{FORMAT}-{}m-{:o}-{}-{}.ext4",
            size / MIB,
            root.mode,
            root.uid,
            root.gid
        );
        let template = cache.entry(
            &name,
            |file| Ok(file.metadata()?.len() == size),
            |file| format_template(program, file, &name, size, root),
        )?;
        let file = HostFile::create(path)?;
        clone(&template, file.file(), size).map_err(|error| DiskError::Copy(path.into(), error))?;
        Ok(Disk { file })
    }

    /// Makes a disk of `size` bytes at `path`, whose upper directory is a copy of the directory `upper`.
    pub(crate) fn create_with(
        upper: &Path,
        program: &Path,
        path: &Path,
        size: u64,
    ) -> Result<Disk, DiskError> {
        let size = whole_mib(size)?;
        let program = mkfs::find(program, "e2fsprogs")?;
        let failed = |error| DiskError::Copy(path.into(), error);
        let file = HostFile::create(path)?;
        file.file().set_len(size).map_err(failed)?;
        let content = tempfile::Builder::new()
            .prefix("disk.")
            .tempdir_in(path.parent().unwrap_or(Path::new("/")))
            .map_err(failed)?;
        let place = content.path().join(DISK_UPPER);
        fs::create_dir(content.path().join(DISK_WORK)).map_err(failed)?;
        fs::create_dir(&place).map_err(failed)?;
        let mut command = mkfs::ext4(&program, FEATURES, path, content.path());
        mkfs::bind_for(&mut command, upper, &place).map_err(failed)?;
        mkfs::run(&mut command).map_err(|source| DiskError::Fill {
            upper: upper.into(),
            mib: size / MIB,
            source,
        })?;
        Ok(Disk { file })
    }
}

fn whole_mib(size: u64) -> Result<u64, DiskError> {
    size.max(MIN_SIZE)
        .checked_next_multiple_of(MIB)
        .ok_or(DiskError::TooLarge(size))
}

fn format_template(
    program: &Path,
    file: &Path,
    name: &str,
    size: u64,
    root: RootAttributes,
) -> Result<(), DiskError> {
    let program = mkfs::find(program, "e2fsprogs")?;
    let content = content(file, name, root).map_err(|error| DiskError::Copy(file.into(), error))?;
    File::options()
        .write(true)
        .open(file)
        .and_then(|file| file.set_len(size))
        .map_err(|error| DiskError::Copy(file.into(), error))?;
    Ok(mkfs::run(&mut mkfs::ext4(
        &program,
        FEATURES,
        file,
        content.path(),
    ))?)
}

/// A directory that looks as the disk shall, next to `file`.
fn content(file: &Path, name: &str, root: RootAttributes) -> io::Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new()
        .prefix(&format!("{name}."))
        .suffix(TEMPORARY)
        .tempdir_in(file.parent().unwrap_or(Path::new(".")))?;
    fs::create_dir(dir.path().join(DISK_WORK))?;
    let upper = dir.path().join(DISK_UPPER);
    fs::create_dir(&upper)?;
    chown(&upper, Some(root.uid), Some(root.gid))?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(root.mode.into()))?;
    Ok(dir)
}

/// Makes the empty file `to` a copy of `from`, with the same holes.
fn clone(from: &File, to: &File, size: u64) -> io::Result<()> {
    match ioctl_ficlone(to, from) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    to.set_len(size)?;
    let mut position = 0;
    while position < size {
        let start = match seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        copy(from, to, start, end)?;
        position = end;
    }
    Ok(())
}

/// Copies the bytes from `start` to `end` of one file to the same place in another.
fn copy(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut read, mut written) = (start, start);
    while read < end {
        let left = usize::try_from(end - read).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut read), to, Some(&mut written), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_hand(from, to, read, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 64 << 10];
    let mut position = start;
    while position < end {
        let left = usize::try_from(end - position).unwrap_or(usize::MAX);
        let piece = left.min(buffer.len());
        let piece = &mut buffer[..piece];
        from.read_exact_at(piece, position)?;
        to.write_all_at(piece, position)?;
        position += piece.len() as u64;
    }
    Ok(())
}

/// Why a writable disk could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// More bytes than a file can have.
    #[error("A disk of {0} bytes is too large")]
    TooLarge(u64),
    /// It could not be formatted.
    #[error(transparent)]
    Format(#[from] MkfsError),
    /// What the snapshot holds already could not be put on it.
    #[error(
        "What the snapshot holds in {upper:?} cannot be copied to a disk of {mib} MiB; if it needs more room, say so \
         with the annotation {annotation} or writable_disk_size_mib",
        annotation = crate::DISK_SIZE_ANNOTATION
    )]
    Fill {
        /// The snapshot's upper directory.
        upper: PathBuf,
        /// The disk's size.
        mib: u64,
        /// What the program said.
        source: MkfsError,
    },
    /// Its file cannot be made.
    #[error(transparent)]
    File(#[from] HostFileError),
    /// A file cannot be written.
    #[error("The disk {0:?} cannot be written")]
    Copy(PathBuf, #[source] io::Error),
    /// The template cannot be kept in the cache.
    #[error("The disk's template cannot be made or opened")]
    Cache(#[from] CacheError),
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_clone_has_the_same_bytes_and_holes() {
        let mut from = tempfile::tempfile().unwrap();
        let to = tempfile::tempfile().unwrap();
        from.set_len(16 * MIB).unwrap();
        for at in [0, 5 * MIB, 16 * MIB - 4096] {
            from.seek(io::SeekFrom::Start(at)).unwrap();
            from.write_all(&[7; 4096]).unwrap();
        }
        clone(&from, &to, 16 * MIB).unwrap();
        let mut both = [Vec::new(), Vec::new()];
        for (mut file, bytes) in [&from, &to].into_iter().zip(&mut both) {
            file.rewind().unwrap();
            file.read_to_end(bytes).unwrap();
        }
        assert!(both[0] == both[1]);
        assert!(to.metadata().unwrap().blocks() * 512 < MIB);
    }

    #[test]
    fn copying_by_hand_is_the_same() {
        let from = tempfile::tempfile().unwrap();
        let mut to = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        (&from).write_all(&bytes).unwrap();
        copy_by_hand(&from, &to, 0, 200_000).unwrap();
        let mut copied = Vec::new();
        to.rewind().unwrap();
        to.read_to_end(&mut copied).unwrap();
        assert!(bytes == copied);
    }
}
