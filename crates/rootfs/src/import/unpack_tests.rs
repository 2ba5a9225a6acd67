//! What a stream without end can make the host keep, and when it ends.

use super::super::tar::tests::{END, header, padded, record};
use super::*;

const MIB: u64 = 1 << 20;

/// Its bytes, again and again: as many times as wanted, or without end.
struct Repeat {
    bytes: Vec<u8>,
    left: u64,
    at: usize,
}

impl Read for Repeat {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let count = buffer.len().min(self.bytes.len() - self.at);
        buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
        self.at = (self.at + count) % self.bytes.len();
        self.left -= u64::from(self.at == 0);
        Ok(count)
    }
}

fn endless(bytes: Vec<u8>) -> Repeat {
    Repeat {
        bytes,
        left: u64::MAX,
        at: 0,
    }
}

fn unpacker(limit: u64) -> Option<(tempfile::TempDir, Unpacker)> {
    if !fc_test_host::has_root("changing owners") {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let unpacker = Unpacker::new(dir.path(), limit).unwrap();
    Some((dir, unpacker))
}

/// A directory with 200 KiB of attributes, which the host's filesystem is not asked to keep.
fn laden(path: &str) -> Vec<u8> {
    [
        record("SCHILY.xattr.security.other", &[b'x'; 200 << 10]),
        header(b'5', path.as_bytes(), 0, &[]),
    ]
    .concat()
}

#[test]
fn of_a_directory_that_is_complete_nothing_is_kept() {
    let Some((dir, mut unpacker)) = unpacker(100 * MIB) else {
        return;
    };
    let mut buffer = [0; 512];
    for n in 0..200 {
        let stream = [laden(&format!("d{n}")), laden(&format!("d{n}/e"))].concat();
        let mut reader = Reader::new(&stream[..]);
        for depth in 1..=2 {
            assert!(unpacker.next(&mut reader, &mut buffer).unwrap());
            assert_eq!((unpacker.open.len(), unpacker.kept_acls()), (depth, 0));
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 200);
    let told: usize = unpacker
        .imported
        .first_skipped
        .iter()
        .map(String::len)
        .sum();
    assert!(told < 100 * 200, "{told}");
}

#[test]
fn attributes_and_skipped_entries_count() {
    let fifo = header(b'6', b"pipe", 0, &[]);
    let again = header(b'5', b".", 0, &[]);
    let link = [
        record("linkpath", &[b't'; 4000]),
        header(b'6', b"l", 0, &[]),
    ]
    .concat();
    let comment = [record("comment", &[b'c'; 200 << 10]), fifo.clone()].concat();
    for stream in [laden("."), fifo, again, link, comment] {
        let Some((_dir, unpacker)) = unpacker(MIB) else {
            return;
        };
        let error = unpacker.unpack(endless(stream)).unwrap_err();
        let ImportError::TooMuch { what, limit } = error else {
            panic!("{error}")
        };
        assert_eq!((what, limit), ("bytes of names and attributes", MIB));
    }
}

#[test]
fn entries_count() {
    let Some((_dir, mut unpacker)) = unpacker(MIB) else {
        return;
    };
    unpacker.entries_left = 3;
    let error = unpacker.unpack(endless(header(b'6', b"pipe", 0, &[])));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("16777216 entries"), "{error}");
}

#[test]
fn headers_without_an_entry_are_refused() {
    let map: &[(usize, &[u8])] = &[(482, b"\x01"), (483, b"00000002000\0")];
    let mut part = vec![0; 512];
    part[504] = 1;
    let sparse = io::Cursor::new(header(b'S', b"sparse", 0, map));
    let parts = sparse.chain(endless(part));
    let records = endless(record("comment", b"more"));
    for stream in [Box::new(parts) as Box<dyn Read>, Box::new(records)] {
        let Some((_dir, unpacker)) = unpacker(MIB) else {
            return;
        };
        let error = unpacker.unpack(stream).unwrap_err();
        assert!(
            matches!(error, ImportError::Tar(super::super::TarError::Header(_))),
            "{error}"
        );
    }
}

#[test]
fn long_default_acls_are_refused() {
    let Some((_dir, unpacker)) = unpacker(100 * MIB) else {
        return;
    };
    let acl = record("SCHILY.xattr.system.posix_acl_default", &[0; 60 << 10]);
    let deep = (1..=100).flat_map(|depth| {
        let path = ["d"; 100][..depth].join("/");
        [acl.clone(), header(b'5', path.as_bytes(), 0, &[])].concat()
    });
    // Paths of up to 100 bytes have room in a header, so they end after fifty levels.
    let stream: Vec<u8> = deep.take(50 * (acl.len() + 512)).collect();
    let error = unpacker.unpack(&stream[..]).unwrap_err().to_string();
    assert!(error.contains("bytes of default ACLs"), "{error}");
}

/// A file does not inherit what its directory would give to new ones.
#[test]
fn a_default_acl_is_not_inherited_by_what_is_brought_back() {
    let Some((dir, unpacker)) = unpacker(MIB) else {
        return;
    };
    // Version 2; tag, permissions and id of owner, user 7, group, mask and others.
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, id) in [
        (1_u16, u32::MAX),
        (2, 7),
        (4, u32::MAX),
        (16, u32::MAX),
        (32, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(7_u16.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let stream = [
        record("SCHILY.xattr.system.posix_acl_default", &acl),
        header(b'5', b"d", 0, &[(136, b"00000001000\0")]),
        header(b'0', b"d/file", 1, &[]),
        padded(b"x"),
        header(b'5', b"d/e", 0, &[]),
        END.to_vec(),
    ]
    .concat();
    let imported = unpacker.unpack(&stream[..]).unwrap();
    assert_eq!((imported.entries, imported.bytes), (3, 1));
    let acl_of =
        |path: &str, name: &str| rustix::fs::lgetxattr(dir.path().join(path), name, &mut [0; 64]);
    assert_eq!(acl_of("d", "system.posix_acl_default"), Ok(acl.len()));
    for path in ["d/file", "d/e"] {
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(acl_of(path, name), Err(Errno::NODATA), "{path} {name}");
        }
    }
    let made = std::fs::metadata(dir.path().join("d")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&made), 0o1000);
}
