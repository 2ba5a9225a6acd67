//! Finds out whether a directory tree has files with large holes.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};

/// Bytes of holes in one file from which it pays to keep them. Fewer are simply stored as zeros.
const WORTH_KEEPING: u64 = 1 << 20;

/// Whether any regular file below `root` has holes of [`WORTH_KEEPING`] bytes or more
/// (such as `/var/log/lastlog`, which can be nominally hundreds of gigabytes long).
pub(crate) fn has_holes(root: &Path) -> io::Result<bool> {
    let mut pending = vec![PathBuf::from(root)];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file()
                && looks_sparse(&entry.metadata()?)
                && begins_hole_early(&entry.path())?
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn looks_sparse(metadata: &Metadata) -> bool {
    metadata
        .len()
        .saturating_sub(metadata.blocks().saturating_mul(512))
        >= WORTH_KEEPING
}

/// Tells holes from compression, which also makes a file occupy less than its length.
fn begins_hole_early(path: &Path) -> io::Result<bool> {
    // A plain directory may change while it is read; whatever takes the file's place is not followed nor waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::RDONLY | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    Ok(seek(&file, SeekFrom::Hole(0))? < file.metadata()?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_large_holes_count() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("file")).unwrap();
        file.set_len(WORTH_KEEPING / 2).unwrap();
        assert!(!has_holes(dir.path()).unwrap());
        file.set_len(WORTH_KEEPING * 2).unwrap();
        assert!(has_holes(dir.path()).unwrap());
    }
}
