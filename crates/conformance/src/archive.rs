//! Writer for the kernel's initramfs format: newc cpio
//! (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel).

const DIRECTORY: u32 = 0o040_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const EXECUTABLE: u32 = 0o100_755;

/// An archive in the making. Everything belongs to root.
#[derive(Debug, Default)]
pub struct Archive {
    out: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a directory; those above it must be there already.
    pub fn dir(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// Adds an executable file.
    ///
    /// # Panics
    /// `content` has 4 GiB or more.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, EXECUTABLE, (0, 0), content);
    }

    /// Adds a character device.
    pub fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// Ends the archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.out
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(content.len()).expect("a file in an initrd has less than 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        // inode, mode, uid, gid, links, mtime, size, device of the file system (2), device (2), length of the
        // name with its NUL, checksum (unused).
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        self.out.extend(b"070701");
        for field in fields {
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
    fn entries_are_aligned_and_their_fields_in_order() {
        let mut archive = Archive::default();
        archive.dir("dev");
        archive.char_device("dev/console", 5, 1);
        archive.program("init", b"12345");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let console = text.find("dev/console").unwrap() - 110;
        let field = |n: usize| &text[console + 6 + n * 8..console + 14 + n * 8];
        assert_eq!(field(1), "00002180"); // S_IFCHR | 0600
        assert_eq!((field(9), field(10)), ("00000005", "00000001"));
        assert_eq!(field(11), "0000000C"); // the name and its NUL
        assert!(text.contains("12345\x00\x00\x00070701") && text.ends_with('\0'));
    }
}
