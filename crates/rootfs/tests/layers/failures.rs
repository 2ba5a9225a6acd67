//! Makers that fail, and makers that are killed.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fc_rootfs::{ContainerFiles, Mount, Rootfs, Settings};
use fc_test_host::{can_mount_images, write_program};

use crate::snapshots::Host;
use crate::{base, prepare};

#[tokio::test]
async fn errors_quote_mkfs() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let layers = host.layer("1", &[], "touch file");
    let mount = host.active("2", &layers);
    let mkfs = script(&host, "echo starting; echo '<E> disk on fire' >&2; exit 3");
    let settings = Settings {
        mkfs_erofs: mkfs,
        ..Settings::new(host.path("cache"))
    };
    let error = Rootfs::new(settings)
        .prepare(&[mount], &host.files("c"))
        .await
        .unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        cause.contains("disk on fire") && cause.contains("exit status: 3"),
        "{cause}"
    );
    assert_eq!(host.cached(), ["merge"]);
    assert_eq!(fs::read_dir(host.path("vm")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_snapshot_that_does_not_fit_its_disk_is_told() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let layers = host.layer("1", &[], "touch file");
    let mount = host.active("2", &layers);
    fs::write(host.path("2/fs/large"), vec![1; 12 << 20]).unwrap();
    let files = ContainerFiles {
        disk_size: 8 << 20,
        ..host.files("c")
    };
    let error = host.rootfs().prepare(&[mount], &files).await.unwrap_err();
    let text = fc_errors::chain(&error);
    for part in ["2/fs", "disk of 8 MiB", fc_rootfs::DISK_SIZE_ANNOTATION] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(fs::read_dir(host.path("vm")).unwrap().count(), 0);
}

fn script(host: &Host, text: &str) -> PathBuf {
    let path = host.path("mkfs");
    write_program(&path, &format!("#!/bin/sh\n{text}\n"));
    path
}

/// Set for the copy of this program that is to be killed: the directory of its host.
const VICTIM: &str = "FC_ROOTFS_TEST_VICTIM";

/// Not a test by itself: what [`a_killed_maker_leaves_nothing_that_stays`] starts and kills.
#[tokio::test]
async fn victim() {
    let Some(dir) = std::env::var_os(VICTIM).map(PathBuf::from) else {
        return;
    };
    let settings = Settings {
        mkfs_erofs: dir.join("mkfs"),
        ..Settings::new(dir.join("cache"))
    };
    let mount = Mount {
        fstype: "overlay".into(),
        options: vec![
            format!("lowerdir={}", dir.join("1/fs").display()),
            format!("upperdir={}", dir.join("2/fs").display()),
        ],
        ..Mount::default()
    };
    let files = fc_rootfs::ContainerFiles {
        disk: dir.join("vm/victim.disk"),
        disk_size: 1 << 30,
        image: dir.join("vm/victim.image"),
    };
    Rootfs::new(settings)
        .prepare(&[mount], &files)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_killed_maker_leaves_nothing_that_stays() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let layers = base(&host);
    let active = host.active("2", &layers);
    // A mkfs.erofs that says which process it is, and then never ends.
    let fifo = host.path("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    script(
        &host,
        &format!("echo $$ > {}; exec sleep 1000", fifo.display()),
    );
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "failures::victim"])
        .env(VICTIM, host.path(""))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    fs::File::open(&fifo)
        .unwrap()
        .read_to_string(&mut pid)
        .unwrap();
    let mkfs = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    assert!(host.cached().iter().any(|name| name.ends_with(".tmp")));
    victim.kill().unwrap();
    assert_eq!(victim.wait().unwrap().signal(), Some(9));
    // Its mkfs goes with it.
    let mut dead = [rustix::event::PollFd::new(
        &mkfs,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    assert_eq!(rustix::event::poll(&mut dead, Some(&limit)), Ok(1));

    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(host.path("").to_str().unwrap()));
    let (_image, _disk) = prepare(&host, &active, "c").await;
    let left = host.cached();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(
        !left
            .iter()
            .any(|name| name.ends_with(".tmp") || name.ends_with(".lock"))
    );
}
