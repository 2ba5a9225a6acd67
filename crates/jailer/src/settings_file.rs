//! Files of the administrator's, which may turn out to be something else: what blocks, or has no end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Longest file that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Opens the regular file `path` for reading. Links are followed.
///
/// # Errors
/// The system's, and one that says so when it is no regular file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Otherwise one would wait for somebody to write into a FIFO.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        let problem = "It is not a regular file";
        Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
    }
}

/// What is in the regular file `path`.
///
/// # Errors
/// As [`open`]; [`io::ErrorKind::FileTooLarge`] beyond 1 MiB.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = open(path)?.take(LONGEST + 1).read_to_end(&mut content)?;
    if read as u64 > LONGEST {
        let problem = format!("It is longer than {LONGEST} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    #[test]
    fn only_a_file_of_a_sensible_length_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read(&path).unwrap(), b"text");
        let long = File::create(&path).unwrap();
        long.set_len(LONGEST).unwrap();
        assert_eq!(read(&path).unwrap().len() as u64, LONGEST);
        long.set_len(LONGEST + 1).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);

        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for other in [fifo.as_path(), dir.path(), Path::new("/dev/zero")] {
            let error = read(other).unwrap_err();
            assert_eq!(error.to_string(), "It is not a regular file", "{other:?}");
        }
        let missing = read(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
