//! What an image was when it was made, noted in an extended attribute of its file.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use data_encoding::HEXLOWER;
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// `<length in bytes>:<SHA-256 in hexadecimal digits>`.
const ATTRIBUTE: &str = "trusted.firecracker.image";
const MAX_VALUE: usize = 128;

/// Notes length and checksum of the file at `path`. Without it (not every filesystem takes attributes) the
/// file is checked less thoroughly.
pub(super) fn record(path: &Path) {
    let noted = File::open(path).and_then(|file| {
        let length = file.metadata()?.len();
        let value = format!("{length}:{}", checksum(&file)?);
        Ok(fsetxattr(
            &file,
            ATTRIBUTE,
            value.as_bytes(),
            XattrFlags::empty(),
        )?)
    });
    if let Err(error) = noted {
        tracing::warn!(image = %path.display(), %error, "an image's checksum cannot be noted");
    }
}

/// Whether the file is as long as it was; true when nobody knows.
pub(super) fn has_recorded_length(file: &File) -> io::Result<bool> {
    let Some((length, _)) = recorded(file)? else {
        return Ok(true);
    };
    Ok(file.metadata()?.len() == length)
}

/// Whether the file's content is what it was; `None` when nobody knows. Reads all of it.
pub(super) fn is_intact(file: &File) -> io::Result<Option<bool>> {
    let Some((length, expected)) = recorded(file)? else {
        return Ok(None);
    };
    Ok(Some(
        file.metadata()?.len() == length && checksum(file)? == expected,
    ))
}

fn recorded(file: &File) -> io::Result<Option<(u64, String)>> {
    let mut value = [0; MAX_VALUE];
    let length = match fgetxattr(file, ATTRIBUTE, &mut value[..]) {
        Ok(length) => length,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
        // Longer than ours: not ours.
        Err(Errno::RANGE) => return Ok(Some((u64::MAX, String::new()))),
        Err(error) => return Err(error.into()),
    };
    let text = String::from_utf8_lossy(&value[..length]);
    let parts = text.split_once(':');
    let known = parts.and_then(|(length, sum)| Some((length.parse().ok()?, sum.to_owned())));
    // A damaged note says as much as a wrong one.
    Ok(Some(known.unwrap_or((u64::MAX, String::new()))))
}

fn checksum(mut file: &File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(HEXLOWER.encode(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}
