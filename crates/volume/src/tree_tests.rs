use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

/// Copies `source` within `limit` bytes to a directory; `None` and a word if the machine cannot.
fn copy(source: &Path, limit: u64) -> Option<(tempfile::TempDir, Result<(), VolumeError>)> {
    if !fc_test_host::has_root("cloning a mount") {
        return None;
    }
    let to = tempfile::tempdir().unwrap();
    let tree = Tree::open("/d", source, true).unwrap();
    let copied = tree.copy(&to.path().join("copy"), &mut Budget::new(limit));
    Some((to, copied))
}

#[test]
fn attributes_are_copied() {
    let from = tempfile::tempdir().unwrap();
    let file = from.path().join("file");
    fs::write(&file, "content").unwrap();
    setxattr(
        &file,
        "security.capability",
        &CAPABILITY,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    setxattr(
        &file,
        "trusted.note",
        b"kept",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4750)).unwrap();
    let Some((to, copied)) = copy(from.path(), 1 << 20) else {
        return;
    };
    copied.unwrap();
    let copy = to.path().join("copy/file");
    let [before, after] = [&file, &copy].map(|path| fs::metadata(path).unwrap());
    assert_eq!(
        (before.mode(), before.mtime(), before.mtime_nsec()),
        (after.mode(), after.mtime(), after.mtime_nsec())
    );
    for (name, value) in [
        ("security.capability", &CAPABILITY[..]),
        ("trusted.note", b"kept"),
    ] {
        let mut found = [0; 64];
        let length = getxattr(&copy, name, &mut found).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(&found[..length], value);
    }
}

/// `cap_net_raw+ep` as the kernel stores it (version 2).
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    let from = tempfile::tempdir().unwrap();
    let content = vec![b'x'; 8192];
    fs::write(from.path().join("a"), &content).unwrap();
    fs::create_dir(from.path().join("dir")).unwrap();
    fs::hard_link(from.path().join("a"), from.path().join("dir/b")).unwrap();
    fs::write(from.path().join("other"), &content).unwrap();
    // Two directories, two files of two blocks, and another name.
    let Some((to, copied)) = copy(from.path(), 7 * 4096) else {
        return;
    };
    copied.unwrap();
    let copy = to.path().join("copy");
    let [a, b, other] = ["a", "dir/b", "other"].map(|name| fs::metadata(copy.join(name)).unwrap());
    assert_eq!((a.ino(), a.nlink(), b.nlink()), (b.ino(), 2, 2));
    assert_eq!(other.nlink(), 1);
    assert!(fs::read(copy.join("dir/b")).unwrap() == content);
}

#[test]
fn a_file_that_grows_is_cut_at_what_was_accounted_for() {
    let from = tempfile::tempdir().unwrap();
    let path = from.path().join("file");
    fs::write(&path, "four and more").unwrap();
    let dir = OwnedFd::from(File::open(from.path()).unwrap());
    let entry = open_entry(&dir, OsStr::new("file")).unwrap();
    let to = from.path().join("copy");
    copy_file(&entry, &to, 4).unwrap();
    assert_eq!(fs::read_to_string(to).unwrap(), "four");
}

#[test]
fn a_directory_without_end_is_refused() {
    let from = tempfile::tempdir().unwrap();
    let mut deep = from.path().to_owned();
    for _ in 0..=MAX_DEPTH {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    let Some((_to, copied)) = copy(from.path(), 1 << 30) else {
        return;
    };
    let why = std::error::Error::source(&copied.unwrap_err())
        .unwrap()
        .to_string();
    assert!(why.contains("directories deep"), "{why}");
}

#[test]
fn a_second_attempt_begins_anew() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("old"), "").unwrap();
    let to = tempfile::tempdir().unwrap();
    let copy = to.path().join("copy");
    fs::create_dir(&copy).unwrap();
    fs::write(copy.join("half"), "").unwrap();
    remove(&copy).unwrap();
    assert!(!copy.exists());
    fs::write(&copy, "").unwrap();
    remove(&copy).unwrap();
    assert!(!copy.exists());
}
