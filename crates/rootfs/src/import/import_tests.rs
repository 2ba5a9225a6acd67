use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use fc_test_host::{has_root, names, sh, sh_bytes};

use super::tar::tests::{END, header, padded, record};
use super::*;

const MIB: u64 = 1 << 20;
/// What the tests let a container bring back.
const LIMIT: u64 = 256 << 10;

/// A snapshot as overlayfs' snapshotter has it, with something in it.
fn snapshot() -> Option<(tempfile::TempDir, PathBuf)> {
    if !has_root("changing owners") {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("fs");
    fs::create_dir(&upper).unwrap();
    fs::create_dir(dir.path().join("work")).unwrap();
    fs::write(upper.join("before"), "x").unwrap();
    Some((dir, upper))
}

#[test]
fn what_was_written_replaces_what_was_there() {
    let Some((dir, upper)) = snapshot() else {
        return;
    };
    let guest = dir.path().join("guest");
    fs::create_dir(&guest).unwrap();
    sh(
        "mkdir -p etc/deep; echo new > etc/file; chown 12:34 etc/file; chmod 04751 etc/file
         ln etc/file etc/hard; ln -s /etc/shadow etc/link; mknod -m 0 etc/gone c 0 0
         setfattr -n trusted.overlay.opaque -v y etc/deep 2>/dev/null || true
         mkfifo etc/pipe; mknod etc/disk b 7 0; mknod etc/null c 1 3
         touch -d @1234567890.5 etc/file etc; chmod 0711 .; chmod 01777 etc/deep",
        &guest,
    );
    let note = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(guest.join("etc/deep"), "trusted.overlay.opaque", b"y", note).unwrap();
    rustix::fs::lsetxattr(guest.join("etc/file"), "trusted.overlay.origin", b"x", note).unwrap();
    let stream = sh_bytes(
        "tar --format=posix --xattrs --xattrs-include='*' -cf - .",
        &guest,
    );
    let imported = import_upper(&stream[..], &upper, LIMIT).unwrap();
    assert_eq!(
        (imported.entries, imported.bytes, imported.skipped),
        (7, 4, 4),
        "{imported:?}"
    );
    let list = "find . -mindepth 1 -not -name pipe -not -name disk -not -name null -not -path ./etc \
                -printf '%P %y %m %U:%G %n %T@ %l\\n' | sort";
    assert_eq!(sh(list, &upper), sh(list, &guest));
    assert!(!upper.join("before").exists());
    let [etc, root, gone] =
        ["etc", ".", "etc/gone"].map(|name| fs::symlink_metadata(upper.join(name)).unwrap());
    assert_eq!(
        (etc.mtime(), etc.mtime_nsec()),
        (1_234_567_890, 500_000_000)
    );
    assert_eq!(root.mode() & 0o7777, 0o711);
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0; 8];
    let opaque =
        rustix::fs::lgetxattr(upper.join("etc/deep"), "trusted.overlay.opaque", &mut value);
    assert_eq!(opaque, Ok(1));
    assert!(
        rustix::fs::lgetxattr(upper.join("etc/file"), "trusted.overlay.origin", &mut value)
            .is_err()
    );
    assert_eq!(names(dir.path()), ["fs", "guest", "work"]);
}

#[test]
fn hostile_streams_change_nothing() {
    let Some((dir, upper)) = snapshot() else {
        return;
    };
    fs::write(dir.path().join("outside"), "precious").unwrap();
    let file = |path: &[u8]| [header(b'0', path, 4, &[]), padded(b"evil")].concat();
    let link = |kind, path: &[u8], target: &[u8]| header(kind, path, 0, &[(157, target)]);
    let directory = |path: &[u8]| header(b'5', path, 0, &[]);
    let large = [header(b'0', b"f", 2 * MIB, &[]), vec![0; 2 << 20]].concat();
    let nominal: Vec<u8> = (0..200)
        .flat_map(|n| {
            header(
                b'S',
                format!("f{n}").as_bytes(),
                0,
                &[(483, b"77777777777\0")],
            )
        })
        .collect();
    let many: Vec<u8> = (0..1100)
        .flat_map(|n| directory(format!("d{n}").as_bytes()))
        .collect();
    let cases: [(&str, Vec<u8>); 18] = [
        ("not relative", file(b"/outside")),
        ("upwards", file(b"../outside")),
        (
            "upwards",
            [directory(b"a"), file(b"a/../../outside")].concat(),
        ),
        ("zero byte", [record("path", b"a\0b"), file(b"x")].concat()),
        (
            "find the directory",
            [link(b'2', b"l", b".."), file(b"l/outside")].concat(),
        ),
        (
            "find the directory",
            [link(b'2', b"l", b"/"), file(b"l/outside")].concat(),
        ),
        (
            "find the directory",
            [link(b'2', b"l", b"."), directory(b"l/d")].concat(),
        ),
        ("find the directory", file(b"missing/file")),
        (
            "make",
            [link(b'2', b"l", b"../outside"), file(b"l")].concat(),
        ),
        ("make", [file(b"f"), directory(b"f")].concat()),
        ("upwards", link(b'1', b"h", b"../outside")),
        ("not relative", link(b'1', b"h", b"/etc/passwd")),
        (
            "find the directory",
            [link(b'2', b"l", b".."), link(b'1', b"h", b"l/outside")].concat(),
        ),
        ("must be a directory", link(b'2', b".", b"/")),
        ("bytes that", large),
        ("bytes that", nominal),
        ("bytes of names and attributes that", many),
        ("something other", b"not a tar at all".repeat(100)),
    ];
    for (name, stream) in cases {
        let stream = [stream, END.to_vec()].concat();
        let error = import_upper(&stream[..], &upper, LIMIT).unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
        assert_eq!(names(&upper), ["before"], "{name}");
        assert_eq!(names(dir.path()), ["fs", "outside", "work"], "{name}");
        let outside = fs::read_to_string(dir.path().join("outside")).unwrap();
        assert_eq!(outside, "precious", "{name}");
    }
    // A stream that breaks off is no stream.
    let error = import_upper(&file(b"f")[..], &upper, LIMIT).unwrap_err();
    assert!(
        matches!(error, ImportError::Tar(TarError::Truncated)),
        "{error}"
    );
    assert_eq!(names(&upper), ["before"]);
}

#[test]
fn a_hard_link_to_a_link_is_that_link() {
    let Some((dir, upper)) = snapshot() else {
        return;
    };
    fs::write(dir.path().join("outside"), "precious").unwrap();
    let stream = [
        header(b'2', b"l", 0, &[(157, b"../outside")]),
        header(b'1', b"h", 0, &[(157, b"l")]),
        END.to_vec(),
    ]
    .concat();
    import_upper(&stream[..], &upper, LIMIT).unwrap();
    let kind = fs::symlink_metadata(upper.join("h")).unwrap().file_type();
    assert!(kind.is_symlink());
    assert_eq!(fs::metadata(dir.path().join("outside")).unwrap().nlink(), 1);
}

#[test]
fn an_upper_directory_must_be_one() {
    let Some((dir, upper)) = snapshot() else {
        return;
    };
    let link = dir.path().join("link");
    symlink(&upper, &link).unwrap();
    for wrong in [
        link,
        dir.path().join("missing"),
        upper.join("before"),
        "/".into(),
    ] {
        let error = import_upper(&END[..], &wrong, MIB).unwrap_err();
        assert!(matches!(error, ImportError::NoDirectory(_)), "{error}");
    }
}

#[test]
fn what_a_killed_import_left_is_removed() {
    let Some((dir, upper)) = snapshot() else {
        return;
    };
    let left = dir.path().join(".write-back.fs.abc");
    fs::create_dir_all(left.join("half")).unwrap();
    // Of another directory beside it: somebody may be at it.
    fs::create_dir(dir.path().join(".write-back.fs2.abc")).unwrap();
    import_upper(&END[..], &upper, LIMIT).unwrap();
    assert_eq!(names(dir.path()), [".write-back.fs2.abc", "fs", "work"]);
    assert_eq!(names(&upper), [""; 0]);
}
