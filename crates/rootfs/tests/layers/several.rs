//! A rootfs of several mounts.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use fc_host_file::{Access, HostFile};
use fc_rootfs::Mount;
use fc_test_host::{can_mount_images, in_namespace, sh};

use crate::snapshots::{Host, mount_image};
use crate::{CHANGES, base, layers_of, list_image};

fn bind(source: &Path, target: &str, options: &[&str]) -> Mount {
    mount("bind", source, target, options)
}

fn mount(fstype: &str, source: &Path, target: &str, options: &[&str]) -> Mount {
    Mount {
        fstype: fstype.into(),
        source: source.to_str().unwrap().into(),
        target: target.into(),
        options: options.iter().map(|option| (*option).into()).collect(),
    }
}

/// The loop devices of the host's files, but for the images that tests themselves mount.
fn loop_devices(host: &Host) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let files =
        devices.filter_map(|dev| fs::read_to_string(dev.path().join("loop/backing_file")).ok());
    let ours = host.path("").display().to_string();
    let tests = host.path("vm").display().to_string();
    files
        .filter(|file| file.contains(&ours) && !file.contains(&tests))
        .collect()
}

/// Waits until there are none: a process that another test is just starting has copies of this one's descriptors,
/// and what one of them keeps of a mount goes only when its program runs.
fn loop_devices_go(host: &Host) {
    let begin = Instant::now();
    while !loop_devices(host).is_empty() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(loop_devices(host), [""; 0]);
}

#[tokio::test]
async fn each_is_mounted_in_order_at_its_target() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let base = base(&host);
    let layers = host.layer("2", &base, CHANGES);
    host.sh(
        "mkdir -p covered 1/fs/data/inner ext4-tree/deeper erofs-tree bound
         echo covered > covered/file; echo ext4 > ext4-tree/deeper/file; echo erofs > erofs-tree/file; echo bound > bound/file
         ln -s /data/inner 1/fs/way
         truncate -s 16M data.ext4; mkfs.ext4 -q -F -d ext4-tree data.ext4
         mkfs.erofs --quiet tree.erofs erofs-tree",
    );
    let mounts = [
        bind(&host.path("covered"), "", &["rbind", "rw"]),
        host.active("3", &layers),
        mount(
            "ext4",
            &host.path("data.ext4"),
            "/data",
            &["loop", "noatime"],
        ),
        mount(
            "erofs",
            &host.path("tree.erofs"),
            "data/deeper",
            &["loop", "ro"],
        ),
        bind(&host.path("bound"), "bin/link", &["rbind", "ro"]),
    ];
    let prepared = host.rootfs().prepare(&mounts, &host.files("c")).await;
    let (image, disk) = layers_of(prepared.unwrap());
    assert!(!image.is_shared() && disk.is_some());
    in_namespace(|| {
        let at = host.path("image");
        mount_image(image.path(), &at, "ro");
        let read = |name: &str| fs::read_to_string(at.join(name)).unwrap();
        assert_eq!(read("data/deeper/file"), "erofs\n");
        assert_eq!(read("bin/link/file"), "bound\n");
        assert_eq!(read("bin/d"), "replaced\n");
        assert!(!at.join("file").exists() && !at.join("data/inner").exists());
        assert!(!at.join("gone").exists());
    });
    let text = list_image(&host, image.path()).join("\n");
    assert!(text.contains("security.capability"), "{text}");
    loop_devices_go(&host);
    drop((image, disk));
    assert_eq!(fs::read_dir(host.path("vm")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_target_is_inside_the_rootfs_whatever_links_say() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    host.sh(
        "mkdir -p root/etc content outside; echo content > content/file
         ln -s /etc root/absolute; ln -s ../../../../../../etc root/relative",
    );
    for target in ["absolute", "relative", "../../etc", "/etc/../etc"] {
        let mounts = [
            bind(&host.path("root"), "", &["rbind", "ro"]),
            bind(&host.path("content"), target, &["rbind", "ro"]),
        ];
        let prepared = host.rootfs().prepare(&mounts, &host.files("c")).await;
        let (image, disk) = layers_of(prepared.unwrap());
        assert!(disk.is_none());
        let listed = list_image(&host, image.path()).join("\n");
        assert!(listed.contains("etc/file"), "{target}: {listed}");
    }
    assert!(!Path::new("/etc/file").exists());
}

/// A block device over a file, until dropped.
struct Loop(String);

impl Loop {
    fn attach(file: &Path) -> Loop {
        let dir = file.parent().unwrap();
        let device = sh(&format!("losetup -f --show {}", file.display()), dir);
        Loop(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // The test's own failure is the one to see.
        let _ = Command::new("losetup").args(["-d", &self.0]).output();
    }
}

#[tokio::test]
async fn a_journal_is_not_replayed_in_what_is_only_read() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    // As a VM that was killed leaves it.
    host.sh(
        "mkdir -p tree/etc; echo x > tree/file; truncate -s 16M dirty.ext4; mkfs.ext4 -q -F -d tree dirty.ext4
         debugfs -w -R 'feature needs_recovery' dirty.ext4; cp dirty.ext4 behind-a-device",
    );
    let image = host.path("dirty.ext4");
    let before = fs::read(&image).unwrap();
    let device = Loop::attach(&host.path("behind-a-device"));
    for source in [&image, Path::new(&device.0)] {
        let prepare = async |options: &[&str]| {
            let mounts = [
                mount("ext4", source, "", options),
                bind(&host.path("tree"), "etc", &["rbind"]),
            ];
            let prepared = host.rootfs().prepare(&mounts, &host.files("c")).await;
            prepared.map(drop)
        };
        for options in [&["rw"][..], &["ro"], &["rw,noatime"]] {
            let text = fc_errors::chain(&prepare(options).await.unwrap_err());
            let name = source.display().to_string();
            assert!(text.contains(&name) && text.contains("read-only"), "{text}");
        }
        prepare(&["ro", "noload"]).await.unwrap();
        assert!(fs::read(source).unwrap() == before, "{}", source.display());
    }
    drop(device);
    loop_devices_go(&host);
    assert!(fs::read(host.path("behind-a-device")).unwrap() == before);
}

#[tokio::test]
async fn nothing_is_left_of_those_before_one_that_fails() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    host.sh(
        "mkdir -p tree/etc; echo x > tree/file; truncate -s 16M a.ext4 broken.ext4; mkfs.ext4 -q -F -d tree a.ext4",
    );
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let first = || mount("ext4", &host.path("a.ext4"), "", &["loop"]);
    for (second, part) in [
        (bind(&host.path("tree"), "missing", &["rbind"]), "missing"),
        (bind(&host.path("tree"), "file", &["rbind"]), "\"file\""),
        (
            mount("ext4", &host.path("broken.ext4"), "etc", &["loop"]),
            "broken.ext4",
        ),
    ] {
        let mounts = [first(), second];
        let prepared = host.rootfs().prepare(&mounts, &host.files("c")).await;
        let text = fc_errors::chain(&prepared.unwrap_err());
        assert!(text.contains(part), "{text}");
        assert_eq!(fs::read_dir(host.path("vm")).unwrap().count(), 0);
        loop_devices_go(&host);
    }
    // One that a VM writes to holds nothing that an image could be made of.
    let mounts = [first(), bind(&host.path("tree"), "etc", &["rbind"])];
    let writer = HostFile::open(&host.path("a.ext4"), Access::Write).unwrap();
    let refused = host.rootfs().prepare(&mounts, &host.files("c")).await;
    let refused = refused.unwrap_err();
    assert!(refused.is_in_use(), "{refused:?}");
    drop(writer);
    let prepared = host.rootfs().prepare(&mounts, &host.files("c")).await;
    drop(prepared.unwrap());
    HostFile::open(&host.path("a.ext4"), Access::Write).unwrap();
    let ours = host.path("").display().to_string();
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!before.contains(&ours) && !after.contains(&ours));
}
