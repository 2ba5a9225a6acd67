//! Private copies of files: shared blocks where the file system can, else with the holes of the original.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

/// What the kernel copies at a time, in bytes: it does not stop when nobody wants the copy any more.
const PIECE: u64 = 4 << 20;
/// What is read at a time where the kernel cannot copy by itself, in bytes.
const BUFFER: usize = 256 << 10;

/// Copies the regular file `from` to the file `to`, which is as long and nothing but a hole. What is a hole stays one.
/// Ends soon after `given_up` has become true.
///
/// # Errors
/// The system's, and [`io::ErrorKind::Interrupted`] if it was given up; `to` may have a part of it then.
pub(crate) fn copy(from: &File, to: &File, given_up: &AtomicBool) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    copy_data(from, to, given_up)
}

fn copy_data(from: &File, to: &File, given_up: &AtomicBool) -> io::Result<()> {
    let length = from.metadata()?.len();
    let mut position = 0;
    while let Some(data) = data_from(from, position, length)? {
        position = data.start;
        while position < data.end {
            if given_up.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let end = data.end.min(position + PIECE);
            copy_range(from, to, position..end)?;
            position = end;
        }
    }
    Ok(())
}

/// The next stretch of data at or after `position`.
fn data_from(file: &File, position: u64, length: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    if position >= length {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(position)) {
        Ok(start) => start,
        // Nothing but a hole to the end.
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some(start..end))
}

fn copy_range(from: &File, to: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    let (mut position, mut out) = (range.start, range.start);
    while position < range.end {
        let rest = usize::try_from(range.end - position).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut position), to, Some(&mut out), rest) {
            // The file became shorter meanwhile.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Two file systems, or one that cannot.
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_through_memory(from, to, position..range.end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_through_memory(from: &File, to: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut position = range.start;
    while position < range.end {
        let rest = usize::try_from(range.end - position).unwrap_or(usize::MAX);
        let piece = &mut buffer[..rest.min(BUFFER)];
        from.read_exact_at(piece, position)?;
        to.write_all_at(piece, position)?;
        position += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    #[test]
    fn holes_and_content_stay() {
        let dir = tempfile::tempdir().unwrap();
        keeps_holes_and_content(dir.path(), dir.path());
    }

    #[test]
    fn from_another_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
            println!("SKIPPED: no /dev/shm to write to");
            return;
        };
        let device = |dir: &Path| dir.metadata().unwrap().dev();
        if device(dir.path()) == device(other.path()) {
            println!("SKIPPED: temporary files and /dev/shm are on one file system");
            return;
        }
        keeps_holes_and_content(other.path(), dir.path());
        keeps_holes_and_content(dir.path(), other.path());
    }

    fn copy_to_hole(from: &Path, to: &Path) {
        let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
        to.set_len(from.metadata().unwrap().len()).unwrap();
        copy(&from, &to, &AtomicBool::new(false)).unwrap();
    }

    fn keeps_holes_and_content(from_dir: &Path, to_dir: &Path) {
        let (from, to) = (from_dir.join("original"), to_dir.join("copied"));
        let mut file = File::create(&from).unwrap();
        file.seek(io::SeekFrom::Start(8 << 20)).unwrap();
        // Longer than the buffer, and no multiple of it.
        let bytes: Vec<u8> = (0..600_001_u32).map(|n| n.to_le_bytes()[1]).collect();
        file.write_all(&bytes).unwrap();
        file.set_len(64 << 20).unwrap();
        copy_to_hole(&from, &to);
        let copied = to.metadata().unwrap();
        assert_eq!(copied.len(), 64 << 20);
        assert!(copied.blocks() * 512 < 1 << 20, "{}", copied.blocks());
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
    }

    #[test]
    fn an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        File::create(&from).unwrap();
        copy_to_hole(&from, &to);
        assert_eq!(to.metadata().unwrap().len(), 0);
    }

    #[test]
    fn a_copy_that_is_given_up_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::write(&from, vec![1; 1 << 20]).unwrap();
        let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
        let error = copy_data(&from, &to, &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert_eq!(to.metadata().unwrap().len(), 0);
    }
}
