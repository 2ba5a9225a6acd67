use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, flock, mkfifoat};

use crate::{Access, Found, HostFile, HostFileError};

fn refused(path: &Path, access: Access) -> String {
    let error = HostFile::open(path, access).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.is_in_use(), text.contains(" is in use: "), "{text}");
    assert_ne!(error.is_in_use(), error.is_refusal(), "{text}");
    text
}

#[test]
fn what_is_no_file_is_refused_by_name_and_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    // Nobody has its other end: opening it would wait for ever.
    mkfifoat(CWD, at("fifo"), Mode::RWXU).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    symlink(at("fifo"), at("link")).unwrap();
    for (path, what) in [
        (at("fifo"), "a FIFO"),
        (at("link"), "a FIFO"),
        (at("socket"), "a socket"),
        (dir.path().to_owned(), "a directory"),
        ("/dev/null".into(), "a character device"),
    ] {
        for access in [Access::Read, Access::Write] {
            let text = refused(&path, access);
            assert!(
                text.starts_with(&format!("{} is {what}, ", path.display())),
                "{text}"
            );
        }
    }
    let text = refused(Path::new("image"), Access::Read);
    assert_eq!(text, "image is not an absolute path");
    symlink(at("nothing"), at("dangling")).unwrap();
    for name in ["nothing", "dangling"] {
        let error = HostFile::open(&at(name), Access::Read).unwrap_err();
        assert!(matches!(error, HostFileError::Open { .. }), "{error}");
        assert!(!at("nothing").exists(), "it was made");
    }
}

#[test]
fn one_writes_or_several_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, "content").unwrap();
    let writer = HostFile::open(&path, Access::Write).unwrap();
    let text = refused(&path, Access::Write);
    assert!(
        text.contains("another VM or container reads or writes it"),
        "{text}"
    );
    let text = refused(&path, Access::Read);
    assert!(
        text.contains("another VM or container writes to it"),
        "{text}"
    );
    let clone = writer.clone();
    drop(writer);
    refused(&path, Access::Read);
    drop(clone);

    let readers = [0; 2].map(|_| HostFile::open(&path, Access::Read).unwrap());
    refused(&path, Access::Write);
    drop(readers);
    HostFile::open(&path, Access::Write).unwrap();
}

#[test]
fn the_file_that_was_found_is_the_one_that_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let [path, other] = ["image", "other"].map(|name| dir.path().join(name));
    fs::write(&path, "first").unwrap();
    fs::write(&other, "second").unwrap();
    let found = Found::at(&path).unwrap();
    fs::rename(&other, &path).unwrap();
    let file = found.open(Access::Write).unwrap();
    let mut content = String::new();
    File::open(file.link())
        .unwrap()
        .read_to_string(&mut content)
        .unwrap();
    assert_eq!(content, "first");
    // To write as well, and by whoever starts from a link to the link.
    let link = dir.path().join("attached");
    symlink(file.link(), &link).unwrap();
    let mut opened = File::options().write(true).open(&link).unwrap();
    opened.write_all(b"FIRST").unwrap();
    assert_eq!(
        opened.metadata().unwrap().ino(),
        file.file().metadata().unwrap().ino()
    );
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(file.path(), path);
}

#[test]
fn a_killed_process_leaves_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, "").unwrap();
    let mut holder = Command::new("flock");
    holder
        .arg("--no-fork")
        .arg(&path)
        .args(["sh", "-c", "echo locked; exec cat"]);
    let holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut holder = match holder {
        Ok(holder) => holder,
        Err(error) => {
            println!("SKIPPED: flock(1) cannot be run: {error}");
            return;
        }
    };
    let mut said = [0; 7];
    holder
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    refused(&path, Access::Read);
    holder.kill().unwrap();
    holder.wait().unwrap();
    HostFile::open(&path, Access::Write).unwrap();
}

#[test]
fn a_file_made_for_a_vm_goes_with_its_last_user() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let made = HostFile::create(&path).unwrap();
    assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
    refused(&path, Access::Read);
    let again = HostFile::create(&path).unwrap_err();
    assert_eq!(again.to_string(), format!("Cannot make {}", path.display()));
    let clone = made.clone();
    drop(made);
    assert!(path.exists());
    drop(clone);
    assert!(!path.exists());
}

#[test]
fn a_lock_that_is_there_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("entry");
    fs::write(&path, "").unwrap();
    let file = File::open(&path).unwrap();
    flock(&file, FlockOperation::NonBlockingLockShared).unwrap();
    let taken = HostFile::shared(&path, file).unwrap();
    let reader = HostFile::open(&path, Access::Read).unwrap();
    refused(&path, Access::Write);
    drop((taken, reader));
    HostFile::open(&path, Access::Write).unwrap();
}

/// A loop device for `image`, detached when dropped.
struct Loop(String);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// Opens what was in use until now. A process that another test is just starting has a copy of this one's descriptors,
/// and with it the kernel's claim to a block device, until its program runs; on a busy machine that can be late.
fn open_soon(path: &Path, access: Access) -> HostFile {
    let begin = Instant::now();
    loop {
        match HostFile::open(path, access) {
            Err(error) if error.is_in_use() && begin.elapsed() < Duration::from_secs(60) => {}
            result => return result.unwrap(),
        }
    }
}

#[test]
fn a_block_device_is_written_to_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let made = Command::new("losetup")
        .args(["-f", "--show"])
        .arg(&image)
        .output();
    let device = match made {
        Ok(made) if made.status.success() => {
            Loop(String::from_utf8(made.stdout).unwrap().trim().to_owned())
        }
        other => {
            println!("SKIPPED: no loop device can be had: {other:?}");
            return;
        }
    };
    let path = Path::new(&device.0);
    // Another node for the same device has locks of its own.
    let node = dir.path().join("node");
    let number = path.metadata().unwrap().rdev();
    rustix::fs::mknodat(
        CWD,
        &node,
        rustix::fs::FileType::BlockDevice,
        Mode::RUSR | Mode::WUSR,
        number,
    )
    .unwrap();
    let readers = [0; 2].map(|_| HostFile::open(path, Access::Read).unwrap());
    refused(path, Access::Write);
    drop(readers);
    let writer = open_soon(path, Access::Write);
    assert!(Found::at(path).unwrap().is_block_device());
    let text = refused(&node, Access::Write);
    assert!(text.contains("the host has it mounted"), "{text}");
    refused(path, Access::Read);
    // Who gets it by the descriptor is not in the way of the claim.
    File::options()
        .read(true)
        .write(true)
        .open(writer.link())
        .unwrap();
    drop(writer);
    open_soon(&node, Access::Write);
}

#[test]
fn a_copy_of_the_descriptor_keeps_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, "").unwrap();
    let writer = HostFile::open(&path, Access::Write).unwrap();
    // As a process that is just being started has one.
    let copy = writer.file().try_clone().unwrap();
    drop(writer);
    HostFile::open(&path, Access::Write).unwrap();
    drop(copy);
}
