use std::io::Read;

use super::*;

fn entry<'a>(path: &'a [u8], kind: Kind<'a>) -> Entry<'a> {
    Entry {
        path,
        kind,
        mode: 0o104_755,
        uid: 10,
        gid: 20,
        mtime: (1_700_000_000, 0),
        xattrs: &[],
    }
}

fn archive(entry: &Entry<'_>, data: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    writer.entry(entry).unwrap();
    let size = data.len() as u64;
    writer.data(&mut { data }, size, &mut [0; 100]).unwrap();
    writer.pad(size).unwrap();
    writer.finish().unwrap()
}

/// What somebody else's reader makes of it.
fn read<T>(archive: &[u8], look: impl FnOnce(&mut ::tar::Entry<'_, &[u8]>) -> T) -> T {
    let mut archive = ::tar::Archive::new(archive);
    let mut entries = archive.entries().unwrap();
    let result = look(&mut entries.next().unwrap().unwrap());
    assert!(entries.next().is_none());
    result
}

#[test]
fn a_small_file_needs_only_a_header() {
    let archive = archive(&entry(b"bin/su", Kind::File(3)), b"abc");
    assert_eq!(archive.len(), 4 * BLOCK);
    read(&archive, |entry| {
        let header = entry.header();
        assert_eq!(header.mode().unwrap(), 0o4755);
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (10, 20));
        assert_eq!(header.mtime().unwrap(), 1_700_000_000);
        assert_eq!(entry.path_bytes().as_ref(), b"bin/su");
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        assert_eq!(content, "abc");
    });
}

#[test]
fn what_a_header_has_no_room_for_is_in_records() {
    let (path, target) = (vec![b'p'; 300], vec![b't'; 101]);
    let xattrs = [
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        (b"user.binary".to_vec(), vec![0, b'=', 255]),
    ];
    let entry = Entry {
        uid: 4_000_000_000,
        gid: 2_097_152,
        mtime: (-2, 250_000_000),
        xattrs: &xattrs,
        ..entry(&path, Kind::Symlink(&target))
    };
    read(&archive(&entry, b""), |entry| {
        assert_eq!(entry.path_bytes().as_ref(), path);
        assert_eq!(entry.link_name_bytes().unwrap().as_ref(), target);
        let records: Vec<_> = entry
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|record| {
                let record = record.unwrap();
                (record.key_bytes().to_vec(), record.value_bytes().to_vec())
            })
            .collect();
        let value = |key: &str| {
            let found = records.iter().find(|(k, _)| k == key.as_bytes());
            found.unwrap().1.clone()
        };
        assert_eq!(value("uid"), b"4000000000");
        assert_eq!(value("gid"), b"2097152");
        assert_eq!(value("mtime"), b"-1.750000000");
        assert_eq!(value("SCHILY.xattr.trusted.overlay.opaque"), b"y");
        assert_eq!(value("SCHILY.xattr.user.binary"), [0, b'=', 255]);
    });
}

#[test]
fn a_record_s_length_counts_itself() {
    // No record has 10 or 100 bytes.
    for (length, total) in [(3, 8), (4, 9), (5, 11), (93, 99), (94, 101)] {
        let value = vec![b'x'; length];
        let mut records = Vec::new();
        record(&mut records, b"k", &value);
        assert_eq!(records.len(), total);
        let text = String::from_utf8(records).unwrap();
        assert!(text.starts_with(&format!("{total} k=")), "{text}");
    }
}

#[test]
fn a_sparse_file_of_any_number_of_pieces_is_whole_again() {
    for count in [0, 1, 4, 5, 25, 26, 60] {
        let pieces: Vec<_> = (0..count)
            .map(|index| Piece {
                offset: index * 4096,
                length: 512,
            })
            .chain([Piece {
                offset: 1 << 20,
                length: 0,
            }])
            .collect();
        let data: Vec<u8> = (0..count * 512).map(|n| n.to_le_bytes()[1] | 1).collect();
        let kind = Kind::Sparse {
            size: 1 << 20,
            pieces: &pieces,
        };
        let archive = archive(&entry(b"disk", kind), &data);
        read(&archive, |entry| {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert_eq!(content.len(), 1 << 20);
            let mut rest = data.as_slice();
            for (number, block) in content.chunks(4096).enumerate() {
                let (stored, hole) = block.split_at(512);
                if (number as u64) < count {
                    assert_eq!(stored, &rest[..512]);
                    rest = &rest[512..];
                } else {
                    assert!(stored.iter().all(|byte| *byte == 0));
                }
                assert!(hole.iter().all(|byte| *byte == 0));
            }
        });
    }
}

#[test]
fn sizes_beyond_eight_gigabytes_are_not_cut() {
    let huge = 1_u64 << 40;
    let pieces = [Piece {
        offset: huge,
        length: 0,
    }];
    let kind = Kind::Sparse {
        size: huge,
        pieces: &pieces,
    };
    read(&archive(&entry(b"thin", kind), b""), |entry| {
        let header = entry.header().as_gnu().unwrap();
        assert_eq!(header.real_size().unwrap(), huge);
        assert_eq!(header.sparse[0].offset().unwrap(), huge);
    });
    let mut writer = Writer::new(Vec::new());
    writer.entry(&entry(b"thick", Kind::File(huge))).unwrap();
    let headers = writer.finish().unwrap();
    assert!(String::from_utf8_lossy(&headers).contains(&format!(" size={huge}\n")));
}

#[test]
fn a_whiteout_is_a_device_of_number_zero() {
    read(&archive(&entry(b"gone", Kind::Whiteout), b""), |entry| {
        let header = entry.header();
        assert_eq!(header.entry_type(), ::tar::EntryType::Char);
        assert_eq!(header.device_major().unwrap(), Some(0));
        assert_eq!(header.device_minor().unwrap(), Some(0));
    });
}

#[test]
fn a_file_that_has_shrunk_keeps_its_size() {
    let mut writer = Writer::new(Vec::new());
    writer.data(&mut &b"ab"[..], 5, &mut [0; 3]).unwrap();
    assert_eq!(writer.0, b"ab\0\0\0");
}
