//! Hands the initrd to QEMU in a shape that does not break the guest.
//!
//! microvm loads the initrd of a `vmlinux` below the top of memory, in whose last page the firmware puts
//! the ACPI tables. The start is rounded down to a page, so an initrd that is no whole number of pages
//! reaches into that last page and destroys the tables: the guest then hangs. Trailing zeros mean nothing
//! to the kernel, so such an initrd is padded, in a copy: in memory, or, in a jail without the `/proc` that
//! gives memory a name, in a file of the working directory.

use std::fs::{File, remove_file};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

const PAGE: u64 = 4096;

/// The names of a process's own descriptors.
const DESCRIPTORS: &str = "/proc/self/fd";

/// What `-initrd` gets.
#[derive(Debug)]
pub struct Initrd {
    /// Path as QEMU sees it.
    pub path: String,
    /// The copy that `path` names, to be inherited.
    pub copy: Option<OwnedFd>,
    /// The copy that `path` names, to be kept until QEMU has loaded it.
    pub scratch: Option<Scratch>,
}

/// A file that is removed with this.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_file(&self.0) {
            log::warn!("Cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Opens the initrd at `path` and copies it if its size needs padding.
///
/// # Errors
/// It cannot be read, or there is no room for the copy.
pub fn prepare(path: &str) -> io::Result<Initrd> {
    let name = format!("initrd-{}", std::process::id());
    prepare_in(path, Path::new(DESCRIPTORS), Path::new(&name))
}

fn prepare_in(path: &str, descriptors: &Path, scratch: &Path) -> io::Result<Initrd> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    if size.is_multiple_of(PAGE) {
        return Ok(Initrd {
            path: path.to_owned(),
            copy: None,
            scratch: None,
        });
    }
    let mut pad = |copy: &mut File| -> io::Result<()> {
        let copied = io::copy(&mut file, copy)?;
        copy.set_len(copied.next_multiple_of(PAGE))
    };
    if descriptors.exists() {
        let mut copy = File::from(memfd_create("initrd", MemfdFlags::CLOEXEC)?);
        pad(&mut copy)?;
        return Ok(Initrd {
            path: format!("{}/{}", descriptors.display(), copy.as_raw_fd()),
            copy: Some(copy.into()),
            scratch: None,
        });
    }
    let mut copy = File::create_new(scratch)?;
    let made = Scratch(scratch.to_owned());
    pad(&mut copy)?;
    Ok(Initrd {
        path: scratch.display().to_string(),
        copy: None,
        scratch: Some(made),
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

    #[test]
    fn without_proc_the_copy_is_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let original = directory.path().join("initrd");
        std::fs::write(&original, vec![7; 5000]).unwrap();
        let copy = directory.path().join("copy");
        let prepare = || prepare_in(original.to_str().unwrap(), Path::new("/nonexistent"), &copy);
        let initrd = prepare().unwrap();
        assert_eq!(std::fs::metadata(&initrd.path).unwrap().len(), 8192);
        // Whoever has put a file there keeps it.
        assert!(prepare().is_err() && copy.exists());
        drop(initrd);
        assert!(!copy.exists());
    }
}
