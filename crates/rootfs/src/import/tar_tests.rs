use super::*;

/// A header block with a right checksum; `fields` are written over it.
pub(in crate::import) fn header(
    kind: u8,
    path: &[u8],
    size: u64,
    fields: &[(usize, &[u8])],
) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put =
        |start: usize, bytes: &[u8]| block[start..start + bytes.len()].copy_from_slice(bytes);
    put(0, &path[..path.len().min(100)]);
    put(100, b"0000644\0");
    for start in [108, 116, 329, 337] {
        put(start, b"0000000\0");
    }
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    for (start, bytes) in fields {
        put(*start, bytes);
    }
    put(148, b"        ");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A pax header with one record.
pub(in crate::import) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..).find(|n| n - n.to_string().len() == rest).unwrap();
    let record = [format!("{length} {key}=").as_bytes(), value, b"\n"].concat();
    [
        header(b'x', b"pax", record.len() as u64, &[]),
        padded(&record),
    ]
    .concat()
}

pub(in crate::import) fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

pub(in crate::import) const END: [u8; 1024] = [0; 1024];

fn read(stream: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(stream);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match reader.data(&mut buffer)? {
                0 => break,
                count => data.extend_from_slice(&buffer[..count]),
            }
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

#[test]
fn entries_follow_one_another() {
    let long = [b'n'; 300];
    let stream = [
        header(b'5', b"./", 0, &[]),
        record("path", &long),
        header(b'0', b"cut", 5, &[(108, b"0000017\0")]),
        padded(b"hello"),
        record("mtime", b"-1.250000000"),
        header(b'2', b"link", 0, &[(157, b"target")]),
        END.to_vec(),
    ]
    .concat();
    let entries = read(&stream).unwrap();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[0].0.kind, Kind::Directory);
    let (file, data) = &entries[1];
    assert_eq!(
        (file.path.as_slice(), file.uid, file.mode),
        (&long[..], 0o17, 0o644)
    );
    assert_eq!(data, b"hello");
    assert_eq!(entries[2].0.kind, Kind::Symlink(b"target".to_vec()));
    assert_eq!(entries[2].0.mtime, (-2, 750_000_000));
    // Data that nobody reads is skipped.
    let mut reader = Reader::new(&stream[..]);
    let mut count = 0;
    while reader.next().unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn sparse_files_have_pieces() {
    let map: &[(usize, &[u8])] = &[
        (386, b"00000000000\0"),
        (398, b"00000000001\0"),
        (410, b"00000001000\0"),
        (422, b"00000000002\0"),
        (483, b"00000002000\0"),
    ];
    let stream = [header(b'S', b"file", 3, map), padded(b"abc"), END.to_vec()].concat();
    let entries = read(&stream).unwrap();
    let pieces = [(0, 1), (512, 2)].map(|(offset, length)| Piece { offset, length });
    assert_eq!(
        entries[0].0.kind,
        Kind::File {
            size: 1024,
            pieces: pieces.to_vec()
        }
    );
    assert_eq!(entries[0].1, b"abc");
    for (start, number, name) in [
        (483, b"00000001000\0", "do not fit"),
        (422, b"00000000003\0", "not its data"),
        (410, b"00000000000\0", "do not fit"),
    ] {
        let mut map = map.to_vec();
        map.push((start, number));
        let error = read(&header(b'S', b"file", 3, &map)).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn nothing_is_believed() {
    let huge = header(b'x', b"pax", 1 << 40, &[]);
    assert!(matches!(read(&huge), Err(TarError::TooLong { .. })));
    assert!(matches!(read(&[]), Err(TarError::Truncated)));
    assert!(matches!(read(&[0; 1023]), Err(TarError::Truncated)));
    let again = [vec![0; BLOCK], header(b'0', b"f", 0, &[])].concat();
    assert!(matches!(read(&again), Err(TarError::Header(_))));
    assert!(matches!(
        read(&header(b'0', b"f", 5, &[])),
        Err(TarError::Truncated)
    ));
    let mut wrong = header(b'0', b"f", 0, &[]);
    wrong[0] ^= 1;
    assert!(matches!(
        read(&wrong),
        Err(TarError::Header("a wrong checksum"))
    ));
    assert!(matches!(
        read(&header(b'L', b"f", 0, &[])),
        Err(TarError::Header(_))
    ));
    assert!(matches!(
        read(&header(b'0', b"f", 0, &[(124, b"9")])),
        Err(TarError::Header(_))
    ));
    let path = vec![b'x'; 5000];
    let long = [record("path", &path), header(b'0', b"f", 0, &[])].concat();
    assert!(matches!(read(&long), Err(TarError::TooLong { .. })));
    for length in 0..60 {
        let stream = [header(b'0', b"f", 40, &[]), padded(&[1; 40]), END.to_vec()].concat();
        let cut = stream.len() * length / 60;
        assert!(read(&stream[..cut.min(stream.len() - 600)]).is_err());
    }
}

/// A stream with bytes changed at random ends in an error or in other entries, never in a panic or without end.
#[test]
fn damage_is_survived() {
    let map: &[(usize, &[u8])] = &[(398, b"00000000001\0"), (483, b"00000002000\0")];
    let whole = [
        header(b'5', b"./", 0, &[]),
        record("mtime", b"-1.250000000"),
        header(b'0', b"file", 5, &[]),
        padded(b"hello"),
        record("SCHILY.xattr.user.a", b"value"),
        header(b'S', b"sparse", 1, map),
        padded(b"x"),
        END.to_vec(),
    ]
    .concat();
    assert_eq!(read(&whole).unwrap().len(), 3);
    // Numerical Recipes' linear congruential generator: the same damage on every run.
    let mut state = 1_u32;
    let mut next = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as usize % below
    };
    for _ in 0..20_000 {
        let mut stream = whole.clone();
        for _ in 0..=next(3) {
            let at = next(stream.len());
            stream[at] = b"\0\xff0789 =\n"[next(9)];
        }
        // Most damage to a header is noticed by its checksum, so that has to be made right again.
        for block in stream.chunks_mut(BLOCK) {
            block[148..156].copy_from_slice(b"        ");
            let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let end = stream.len() - END.len();
        stream[end..].fill(0);
        let _ = read(&stream);
    }
}
