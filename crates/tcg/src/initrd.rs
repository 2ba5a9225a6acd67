//! Hands the initrd to QEMU in a shape that does not break the guest.
//!
//! microvm loads the initrd of a `vmlinux` below the top of memory, in whose last page the firmware puts
//! the ACPI tables. The start is rounded down to a page, so an initrd that is no whole number of pages
//! reaches into that last page and destroys the tables: the guest then hangs. Trailing zeros mean nothing
//! to the kernel, so such an initrd is padded, in a copy in memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};

const PAGE: u64 = 4096;

/// What `-initrd` gets.
#[derive(Debug)]
pub struct Initrd {
    /// Path as QEMU sees it.
    pub path: String,
    /// The copy that `path` names, to be inherited.
    pub copy: Option<OwnedFd>,
}

/// Opens the initrd at `path` and copies it if its size needs padding.
///
/// # Errors
/// It cannot be read, or memory for the copy is short.
pub fn prepare(path: &str) -> io::Result<Initrd> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    if size.is_multiple_of(PAGE) {
        return Ok(Initrd {
            path: path.to_owned(),
            copy: None,
        });
    }
    let mut copy = File::from(memfd_create("initrd", MemfdFlags::CLOEXEC)?);
    let copied = io::copy(&mut file, &mut copy)?;
    copy.set_len(copied.next_multiple_of(PAGE))?;
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(Initrd {
        path,
        copy: Some(copy.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_only_if_need_be() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        file.as_file().set_len(8192).unwrap();
        assert!(prepare(path).unwrap().copy.is_none());

        std::fs::write(path, vec![7; 5000]).unwrap();
        let initrd = prepare(path).unwrap();
        let content = std::fs::read(&initrd.path).unwrap();
        assert_eq!(content.len(), 8192);
        assert_eq!(content[..5000], [7; 5000]);
        assert_eq!(content[5000..], [0; 3192]);
    }
}
