//! Images made on the spot, and what their volumes must look like afterwards.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use fc_testbed::image::archive;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

/// Volumes `/missing`, `/srv/www`, `/trap` and `/var/empty`.
pub const NAME: &str = "localhost/volumes:1";
/// No volumes.
pub const PLAIN: &str = "localhost/plain:1";
/// A volume that is a file.
pub const FILE: &str = "localhost/file:1";
/// A volume that is a link to the root.
pub const ROOT: &str = "localhost/root:1";
/// A volume without a leading slash.
pub const RELATIVE: &str = "localhost/relative:1";

/// All of them, each in a tar to be imported.
pub fn archives() -> Vec<(&'static str, Vec<u8>)> {
    let all: [(&str, &[&str]); 5] = [
        (NAME, &["/var/empty", "/trap", "/srv/www", "/missing"]),
        (PLAIN, &[]),
        (FILE, &["/srv/www", "/etc/inside"]),
        (ROOT, &["/up"]),
        (RELATIVE, &["srv/www"]),
    ];
    let layers = [first_layer(), second_layer()];
    all.map(|(name, volumes)| {
        let volumes: Value = volumes
            .iter()
            .map(|volume| ((*volume).to_owned(), json!({})))
            .collect();
        let config = json!({ "Volumes": volumes });
        (name, archive(name, &config, &layers).unwrap())
    })
    .into()
}

/// Volumes of [`NAME`], by the names in `dir` that they have in the order of their paths.
pub fn assert_volumes(dir: &Path, names: &[&Path]) {
    let [missing, www, trap, empty] = names else {
        panic!("{names:?}");
    };
    let list = |name: &Path| {
        let entries = fs::read_dir(dir.join(name)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names.join(" ")
    };
    let stat = |name: &Path| {
        let stat = fs::metadata(dir.join(name)).unwrap();
        let mode = stat.mode() & 0o7777;
        format!("{mode:o} {}:{}", stat.uid(), stat.gid())
    };
    assert_eq!(list(missing), "");
    assert_eq!(list(empty), "");
    assert_eq!(stat(empty), "711 9:9");
    // The image's own directory, not the host's.
    assert_eq!(list(trap), "inside");
    assert_eq!(list(www), "hard index link");
    assert_eq!(stat(www), "750 7:8");
    let index = www.join("index");
    assert_eq!(stat(&index), "640 7:8");
    let index = dir.join(index);
    for file in [&index, &dir.join(www).join("hard")] {
        assert_eq!(fs::read_to_string(file).unwrap(), "hello\n");
    }
    let mut origin = [0; 16];
    let length = rustix::fs::getxattr(&index, "user.origin", &mut origin).unwrap();
    assert_eq!(&origin[..length], b"image");
    let link = fs::read_link(dir.join(www).join("link")).unwrap();
    assert_eq!(link, Path::new("../../etc/inside"));
}

fn first_layer() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for dir in ["etc", "srv", "var"] {
        add(&mut tar, EntryType::Directory, dir, 0o755, (0, 0), b"");
    }
    add(
        &mut tar,
        EntryType::Directory,
        "srv/www",
        0o750,
        (7, 8),
        b"",
    );
    add(
        &mut tar,
        EntryType::Directory,
        "var/empty",
        0o711,
        (9, 9),
        b"",
    );
    add(
        &mut tar,
        EntryType::Regular,
        "etc/inside",
        0o644,
        (0, 0),
        b"",
    );
    add(
        &mut tar,
        EntryType::Regular,
        "srv/www/old",
        0o644,
        (7, 8),
        b"",
    );
    let origin: [(&str, &[u8]); 1] = [("SCHILY.xattr.user.origin", b"image")];
    tar.append_pax_extensions(origin).unwrap();
    add(
        &mut tar,
        EntryType::Regular,
        "srv/www/index",
        0o640,
        (7, 8),
        b"hello\n",
    );
    for (kind, path, target) in [
        (EntryType::Link, "srv/www/hard", "srv/www/index"),
        (EntryType::Symlink, "srv/www/link", "../../etc/inside"),
        (EntryType::Symlink, "trap", "../../../../../../etc"),
        (EntryType::Symlink, "up", "srv/../.."),
    ] {
        let mut header = header(kind, 0o640, (7, 8), 0);
        tar.append_link(&mut header, path, target).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Deletes a file of the first.
fn second_layer() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    add(
        &mut tar,
        EntryType::Regular,
        "srv/www/.wh.old",
        0o644,
        (0, 0),
        b"",
    );
    tar.into_inner().unwrap()
}

fn add(
    tar: &mut Builder<Vec<u8>>,
    kind: EntryType,
    path: &str,
    mode: u32,
    owner: (u64, u64),
    content: &[u8],
) {
    let mut header = header(kind, mode, owner, content.len() as u64);
    tar.append_data(&mut header, path, content).unwrap();
}

fn header(kind: EntryType, mode: u32, (uid, gid): (u64, u64), size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_size(size);
    header.set_mtime(0);
    header
}
