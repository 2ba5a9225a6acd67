use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use fc_test_host::has_root;

use super::*;

fn export(dir: &Path) -> (Vec<u8>, Skipped) {
    let mut archive = Vec::new();
    let skipped = walk(open_root(dir).unwrap(), &mut archive).unwrap();
    (archive, skipped)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Unpacks with GNU tar.
fn by_tar(archive: &[u8], into: &Path) {
    let mut tar = Command::new("tar")
        .args([
            "--extract",
            "--preserve-permissions",
            "--xattrs",
            "--xattrs-include=*",
        ])
        .args(["--same-owner", "--numeric-owner", "--directory"])
        .arg(into)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    tar.stdin.take().unwrap().write_all(archive).unwrap();
    assert!(tar.wait().unwrap().success());
}

/// Unpacks as the host does.
fn by_host(archive: &[u8], into: &Path) {
    let imported = fc_rootfs::import_upper(archive, into, 1 << 30).unwrap();
    assert_eq!(imported.skipped, 0, "{:?}", imported.first_skipped);
}

fn set_xattr(path: &Path, name: &CStr, value: &[u8]) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: both strings end with zeros, and the value has the length that is given.
    let result = unsafe {
        libc::lsetxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    Errno::result(result).unwrap();
}

/// Type, mode, owner, size, times and link target of everything, as `find` sees it.
fn listing(dir: &Path) -> String {
    let format = "%P %y %m %U %G %s %n %T@ %l\\n";
    let list = run(Command::new("find")
        .arg(dir)
        .args(["-not", "-type", "p", "-printf", format]));
    let mut lines: Vec<_> = list
        .lines()
        .map(|line| match line.split_once(" d ") {
            // A directory's size is its file system's business.
            Some((name, rest)) => {
                let mut fields: Vec<_> = rest.split(' ').collect();
                fields.remove(3);
                format!("{name} d {}", fields.join(" "))
            }
            None => line.to_owned(),
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn another_tar_makes_the_same_tree_of_it() {
    same_tree(by_tar);
}

#[test]
fn the_host_makes_the_same_tree_of_it() {
    same_tree(by_host);
}

fn same_tree(unpack: fn(&[u8], &Path)) {
    if !has_root("making devices and changing owners") {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (base, to) = (from.path(), to.path().join("upper"));
    fs::create_dir(&to).unwrap();
    let deep = base.join("long".repeat(30)).join("name".repeat(30));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    fs::write(base.join("setuid"), "#!").unwrap();
    std::os::unix::fs::chown(base.join("setuid"), Some(3_000_000), Some(7)).unwrap();
    fs::set_permissions(base.join("setuid"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::hard_link(base.join("setuid"), deep.join("other name")).unwrap();
    fs::hard_link(base.join("setuid"), base.join("third")).unwrap();
    symlink("/nowhere", base.join("link")).unwrap();
    fs::set_permissions(base, fs::Permissions::from_mode(0o1777)).unwrap();
    let sparse = File::create(base.join("sparse")).unwrap();
    for place in [0, 3 << 20, 9 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", place).unwrap();
    }
    sparse.set_len(20 << 20).unwrap();
    fs::write(base.join("empty"), "").unwrap();
    run(Command::new("mknod")
        .arg(base.join("gone"))
        .args(["--mode=0", "c", "0", "0"]));
    fs::hard_link(base.join("gone"), base.join("gone too")).unwrap();
    run(Command::new("mknod")
        .arg(base.join("zero"))
        .args(["c", "1", "5"]));
    run(Command::new("mkfifo").arg(base.join("fifo")));
    let _socket = std::os::unix::net::UnixListener::bind(base.join("socket")).unwrap();
    set_xattr(&deep, c"trusted.overlay.opaque", b"y");
    set_xattr(&deep, c"trusted.overlay.origin", b"handle");
    set_xattr(&deep, c"trusted.binary", b"\0\n=\xff");
    set_xattr(&base.join("link"), c"trusted.on-a-link", b"1");

    let (archive, mut skipped) = export(base);
    skipped.first.sort();
    assert_eq!(
        skipped.first,
        [
            "/fifo: FIFOs are not exported",
            "/socket: sockets are not exported",
            "/zero: device nodes are not exported",
        ]
    );
    assert_eq!(skipped.count, 3);
    assert!(
        archive.len() < 1 << 20,
        "{} bytes for a sparse file",
        archive.len()
    );
    unpack(&archive, &to);

    for name in ["fifo", "socket", "zero"] {
        assert!(!to.join(name).exists(), "{name}");
        fs::remove_file(base.join(name)).unwrap();
    }
    // What the removals above have changed, and whiteouts' link counts, which mean nothing.
    for dir in [base, &to] {
        fs::remove_file(dir.join("gone too")).unwrap();
        run(Command::new("touch").args(["-d", "@1"]).arg(dir));
    }
    assert_eq!(listing(base), listing(&to));
    let same = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
    assert_eq!(same("setuid"), same("third"));
    run(Command::new("cmp")
        .arg(base.join("sparse"))
        .arg(to.join("sparse")));
    let copy = to.join(deep.strip_prefix(base).unwrap());
    let copy = CString::new(copy.as_os_str().as_bytes()).unwrap();
    assert_eq!(xattr::get(&copy, b"trusted.overlay.opaque").unwrap(), b"y");
    assert!(xattr::get(&copy, b"trusted.overlay.origin").is_err());
    assert_eq!(xattr::get(&copy, b"trusted.binary").unwrap(), b"\0\n=\xff");
    let link = CString::new(to.join("link").as_os_str().as_bytes()).unwrap();
    assert_eq!(xattr::get(&link, b"trusted.on-a-link").unwrap(), b"1");
}

#[test]
fn links_lead_nowhere() {
    let (outside, upper) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), upper.path().join("dir")).unwrap();
    symlink(outside.path().join("secret"), upper.path().join("file")).unwrap();
    let (archive, _) = export(upper.path());
    let mut names = Vec::new();
    for entry in ::tar::Archive::new(archive.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        assert_eq!(content, "");
        names.push(entry.path().unwrap().display().to_string());
    }
    names.sort();
    assert_eq!(names, [".", "dir", "file"]);
    assert!(open_root(&upper.path().join("dir")).is_err());
}

#[test]
fn nesting_has_a_bound() {
    let upper = tempfile::tempdir().unwrap();
    let mut dir = upper.path().to_owned();
    for _ in 0..MAX_DEPTH {
        dir.push("d");
    }
    fs::create_dir_all(&dir).unwrap();
    let error = walk(open_root(upper.path()).unwrap(), io::sink()).unwrap_err();
    assert!(matches!(error, ExportError::TooDeep { .. }), "{error}");
    fs::remove_dir(&dir).unwrap();
    walk(open_root(upper.path()).unwrap(), io::sink()).unwrap();
}

#[test]
fn a_layer_that_refers_to_others_is_refused() {
    if !has_root("setting overlayfs' attributes") {
        return;
    }
    let upper = tempfile::tempdir().unwrap();
    fs::create_dir(upper.path().join("moved")).unwrap();
    set_xattr(
        &upper.path().join("moved"),
        c"trusted.overlay.redirect",
        b"/old",
    );
    let error = walk(open_root(upper.path()).unwrap(), io::sink()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Cannot export /moved: its attribute trusted.overlay.redirect refers to a layer of the guest"
    );
}

#[test]
fn many_pieces_end_in_one() {
    let upper = tempfile::tempdir().unwrap();
    let file = File::create(upper.path().join("f")).unwrap();
    for number in 0..(MAX_PIECES as u64 + 10) {
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", number * 16384).unwrap();
    }
    let size = file.metadata().unwrap().len();
    let pieces = pieces(&file, size).unwrap().unwrap();
    assert_eq!(pieces.len(), MAX_PIECES);
    let last = pieces.last().unwrap();
    assert_eq!(last.offset + last.length, size);
}
