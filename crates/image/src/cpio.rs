//! Writer for the kernel's initramfs format: newc cpio
//! (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel).

use std::collections::BTreeSet;

/// An archive in the making. Everything belongs to root and carries no time, so
/// that the same content gives the same bytes.
#[derive(Debug, Default)]
pub struct Archive {
    out: Vec<u8>,
    inode: u32,
    dirs: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;

impl Archive {
    /// Adds a directory and those above it, once.
    pub fn dir(&mut self, path: &str) {
        let mut end = 0;
        for part in path.split('/') {
            end += part.len();
            let prefix = &path[..end];
            end += 1;
            if self.dirs.insert(prefix.to_owned()) {
                self.entry(prefix, DIRECTORY | 0o755, (0, 0), &[]);
            }
        }
    }

    /// Adds a file with permissions `mode`, and its directories. Paths are without a leading slash.
    ///
    /// # Panics
    /// When `content` is 4 GiB or longer, which the format cannot express.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent);
        }
        self.entry(path, REGULAR | mode, (0, 0), content);
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent);
        }
        self.entry(path, CHARACTER_DEVICE | mode, (major, minor), &[]);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.out
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(content.len()).expect("an initrd file is below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        // inode, mode, uid, gid, links, mtime, size, device of the file system
        // (2), device (2), name's length with its NUL, checksum (unused).
        let links = 1 + u32::from(mode & DIRECTORY == DIRECTORY);
        self.out.extend(b"070701");
        for field in [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ] {
            self.out.extend(format!("{field:08X}").as_bytes());
        }
        self.out.extend(path.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_written_once_and_before_their_content() {
        let mut archive = Archive::default();
        archive.file("a/b/one", 0o644, b"1");
        archive.file("a/b/two", 0o755, b"22");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert_eq!(text.matches("070701").count(), 5); // a, a/b, one, two, trailer
        assert!(text.find("a/b\0").unwrap() < text.find("a/b/one").unwrap());
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn header_fields_are_in_the_format_s_order() {
        let mut archive = Archive::default();
        archive.char_device("console", 0o600, 5, 1);
        let bytes = archive.finish();
        let field = |n: usize| std::str::from_utf8(&bytes[6 + n * 8..14 + n * 8]).unwrap();
        assert_eq!(field(1), "00002180"); // S_IFCHR | 0600
        assert_eq!((field(9), field(10)), ("00000005", "00000001"));
        assert_eq!(field(11), "00000008"); // "console" and its NUL
        assert_eq!(&bytes[110..118], b"console\0");
    }
}
