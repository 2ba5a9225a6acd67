//! Image files and block devices.

use std::fs;

use fc_errors::chain;
use fc_test_host::can_mount_images;
use serde_json::json;

use crate::host::{Host, guest_mounts};

fn host() -> Host {
    let host = Host::new();
    host.sh("truncate -s 16M data.ext4; mkfs.ext4 -q -F data.ext4
        mkdir tree; echo erofs > tree/file; mkfs.erofs --quiet data.erofs tree
        mkdir dir; mkfifo fifo; echo text > text");
    host
}

#[tokio::test]
async fn an_image_is_attached_as_it_is() {
    if !can_mount_images() {
        return;
    }
    let host = host();
    let mounts = json!([
        {"destination": "/rw", "type": "ext4", "source": host.path("data.ext4"),
            "options": ["noatime", "data=ordered", "rslave", "loop"]},
        {"destination": "/ro", "type": "erofs", "source": host.path("data.erofs"), "options": ["rw", "nosuid"]},
    ]);
    let prepared = host.prepare(&mounts, None).await.unwrap();
    let expected = json!([
        {"destination": "/rw", "type": "bind", "source": "/container/c/volume-0",
            "options": ["bind", "rw", "noatime", "rslave"]},
        {"destination": "/ro", "type": "bind", "source": "/container/c/volume-1", "options": ["bind", "ro", "nosuid"]},
    ]);
    assert_eq!(guest_mounts(&prepared), expected);
    let drives: Vec<_> = prepared
        .drives()
        .iter()
        .map(|drive| {
            (
                drive.fstype.as_str(),
                drive.read_only,
                drive.options.join(","),
            )
        })
        .collect();
    assert_eq!(
        drives,
        [
            ("ext4", false, "noatime,data=ordered".into()),
            ("erofs", true, "nosuid".into())
        ]
    );
    assert_eq!(host.in_drive(&prepared, 1, "cat file"), "erofs\n");
    // Nothing of it is ours to remove.
    drop(prepared);
    assert!(host.path("data.ext4").exists() && host.files().is_empty());
}

#[tokio::test]
async fn a_writable_image_has_one_user() {
    if !can_mount_images() {
        return;
    }
    let host = host();
    let mount = |options: &[&str]| json!([{"destination": "/d", "type": "ext4", "source": host.path("data.ext4"), "options": options}]);
    let writable = mount(&["rw"]);
    let read_only = mount(&["ro"]);
    let first = host.prepare(&writable, None).await.unwrap();
    for again in [&writable, &read_only] {
        let text = chain(&host.prepare(again, None).await.unwrap_err());
        assert!(
            text.contains("is in use: another VM or container"),
            "{text}"
        );
    }
    drop(first);
    let readers = [
        host.prepare(&read_only, None).await.unwrap(),
        host.prepare(&read_only, None).await.unwrap(),
    ];
    assert!(host.prepare(&writable, None).await.is_err());
    drop(readers);
    host.prepare(&writable, None).await.unwrap();
}

#[tokio::test]
async fn what_is_no_such_image_is_refused_by_name() {
    if !can_mount_images() {
        return;
    }
    let host = host();
    for (source, fstype, options, name) in [
        ("data.ext4", "xfs", &[][..], "holds no xfs filesystem"),
        ("data.erofs", "ext4", &[], "holds no ext4 filesystem"),
        ("text", "squashfs", &[], "holds no squashfs filesystem"),
        ("text", "btrfs", &[], "holds no btrfs filesystem"),
        (
            "dir",
            "ext4",
            &[],
            "a directory, neither a regular file nor a block device",
        ),
        (
            "fifo",
            "ext4",
            &[],
            "a FIFO, neither a regular file nor a block device",
        ),
        ("data.ext4", "ext4", &["offset=4096"], "offset=4096"),
        ("data.ext4", "ext4", &["rshared"], "rshared"),
        ("missing", "ext4", &[], "Cannot open"),
        ("data.ext4", "vfat", &[], "vfat"),
    ] {
        let mounts = json!([{"destination": "/d", "type": fstype, "source": host.path(source), "options": options}]);
        let text = chain(&host.prepare(&mounts, None).await.unwrap_err());
        assert!(text.contains(name) && text.contains("/d"), "{text}");
    }
}

#[tokio::test]
async fn a_block_device_is_an_image_too() {
    if !can_mount_images() {
        return;
    }
    let host = host();
    let device = host.sh("losetup -f --show data.ext4").trim().to_owned();
    let mounts = json!([{"destination": "/d", "type": "ext4", "source": device}]);
    let prepared = host.prepare(&mounts, None).await;
    host.sh(&format!("losetup -d {device}"));
    let prepared = prepared.unwrap();
    assert_eq!(
        prepared.drives()[0].file.path(),
        std::path::Path::new(&device)
    );
    assert!(fs::metadata(&device).is_ok());
}
