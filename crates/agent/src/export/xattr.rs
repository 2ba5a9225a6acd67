//! Extended attributes, and which of them mean something outside of this guest.

use std::ffi::{CStr, CString};
use std::io;

use nix::errno::Errno;

/// Name and value of an attribute.
pub(super) type Xattr = (Vec<u8>, Vec<u8>);

/// Attributes of overlayfs itself.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// What to do with an attribute.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes with the file.
    Keep,
    /// overlayfs's notes about this mount; it makes new ones.
    Forget,
    /// The file means nothing without the guest's other layers.
    Foreign,
}

/// Whether the attribute called `name` belongs into an archive.
pub(super) fn fate(name: &[u8]) -> Fate {
    match name.strip_prefix(OVERLAY) {
        None | Some(b"opaque") => Fate::Keep,
        Some(b"redirect" | b"metacopy") => Fate::Foreign,
        // Those of an overlay in the container, escaped.
        Some(inner) if inner.starts_with(b"overlay.") => Fate::Keep,
        Some(_) => Fate::Forget,
    }
}

/// Names of the attributes of `path`, whose last component is not followed.
pub(crate) fn list(path: &CStr) -> io::Result<Vec<Vec<u8>>> {
    let names = grow(|buffer| {
        // SAFETY: path ends with a zero, and the kernel writes at most as many bytes as it is told.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    let names = match names {
        // The file system has none.
        Err(Errno::EOPNOTSUPP) => Vec::new(),
        other => other?,
    };
    let names = names.split(|byte| *byte == 0);
    Ok(names
        .filter(|n| !n.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

/// The value of one of them.
pub(crate) fn get(path: &CStr, name: &[u8]) -> io::Result<Vec<u8>> {
    let name = CString::new(name)?;
    let value = grow(|buffer| {
        let (start, length) = (buffer.as_mut_ptr().cast(), buffer.len());
        // SAFETY: path and name end with zeros, and the kernel writes at most `length` bytes.
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), start, length) }
    });
    Ok(value?)
}

/// Calls `read` with as large a buffer as it wants.
fn grow(read: impl Fn(&mut [u8]) -> libc::ssize_t) -> nix::Result<Vec<u8>> {
    let size = |result| Errno::result(result).map(|n| usize::try_from(n).unwrap_or(0));
    loop {
        let wanted = size(read(&mut []))?;
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let mut buffer = vec![0; wanted];
        match size(read(&mut buffer)) {
            // It has grown.
            Err(Errno::ERANGE) => {}
            result => {
                buffer.truncate(result?);
                return Ok(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlayfs_s_own_attributes_are_told_apart() {
        for name in [
            "user.a",
            "security.capability",
            "trusted.overlay.opaque",
            "trusted.overlay.overlay.opaque",
        ] {
            assert_eq!(fate(name.as_bytes()), Fate::Keep, "{name}");
        }
        for name in ["origin", "impure", "nlink", "uuid", "upper"] {
            let name = format!("trusted.overlay.{name}");
            assert_eq!(fate(name.as_bytes()), Fate::Forget, "{name}");
        }
        assert_eq!(fate(b"trusted.overlay.redirect"), Fate::Foreign);
        assert_eq!(fate(b"trusted.overlay.metacopy"), Fate::Foreign);
    }
}
