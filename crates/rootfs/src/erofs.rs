//! The little of the EROFS format that the host reads of images it made itself
//! (`fs/erofs/erofs_fs.h` of the Linux kernel).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;

/// Mode and owner of an image's root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootAttributes {
    /// Permission bits, with set-id and sticky bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Reads where the image ends, in bytes; `None` when it is no EROFS image.
pub(crate) fn length(image: &File) -> io::Result<Option<u64>> {
    Ok(superblock(image)?.map(|superblock| u64::from(le32(&superblock, 36)) << superblock[12]))
}

/// Reads the root directory's attributes; `None` when `image` is no EROFS image.
pub(crate) fn root_attributes(image: &File) -> io::Result<Option<RootAttributes>> {
    let Some(superblock) = superblock(image)? else {
        return Ok(None);
    };
    let metadata = u64::from(le32(&superblock, 40)) << superblock[12];
    let root = metadata + u64::from(le16(&superblock, 14)) * 32;
    let mut inode = [0; 32];
    image.read_exact_at(&mut inode, root)?;
    let extended = le16(&inode, 0) & 1 == 1;
    let (uid, gid) = if extended {
        (le32(&inode, 24), le32(&inode, 28))
    } else {
        (u32::from(le16(&inode, 24)), u32::from(le16(&inode, 26)))
    };
    Ok(Some(RootAttributes {
        mode: le16(&inode, 4) & 0o7777,
        uid,
        gid,
    }))
}

fn superblock(image: &File) -> io::Result<Option<[u8; 128]>> {
    let mut bytes = [0; 128];
    match image.read_exact_at(&mut bytes, SUPERBLOCK) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    // Blocks are 512 bytes to 64 KiB: more would overflow the shifts above.
    let plausible = le32(&bytes, 0) == MAGIC && (9..=16).contains(&bytes[12]);
    Ok(plausible.then_some(bytes))
}

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_has_no_length() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(length(&file).unwrap(), None);
        file.set_len(4096).unwrap();
        assert_eq!(length(&file).unwrap(), None);
        file.write_all_at(&MAGIC.to_le_bytes(), SUPERBLOCK).unwrap();
        file.write_all_at(&[255], SUPERBLOCK + 12).unwrap();
        assert_eq!(length(&file).unwrap(), None);
        assert_eq!(root_attributes(&file).unwrap(), None);
    }
}
