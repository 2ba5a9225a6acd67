//! Layers that are images themselves.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fc_test_host::{can_mount_images, in_namespace};

use crate::snapshots::{Host, mount_image};
use crate::{CHANGES, assert_same, base, list_image, list_mount, prepare};

#[tokio::test]
async fn erofs_layers_are_merged_on_the_host() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let base = base(&host);
    let plain = host.layer("2", &base, CHANGES);
    let expected = list_mount(&host, &host.active("3", &plain));
    let layers: Vec<PathBuf> = ["2", "1"]
        .map(|number| {
            let snapshot = host.path(&format!("e{number}"));
            fs::create_dir_all(snapshot.join("fs")).unwrap();
            fs::write(snapshot.join(".erofslayer"), "").unwrap();
            let made = Command::new("mkfs.erofs")
                .args(["--quiet", "--chunksize=4096"])
                .args([
                    snapshot.join("layer.erofs"),
                    host.path(&format!("{number}/fs")),
                ])
                .output()
                .unwrap();
            assert!(made.status.success());
            snapshot.join("fs")
        })
        .into();
    let (image, _disk) = prepare(&host, &host.active("4", &layers), "c").await;
    assert_same(&expected[1..], &list_image(&host, image.path())[1..]);
}

#[tokio::test]
async fn a_hundred_erofs_layers_become_one() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let mut layers = Vec::new();
    for number in 0..100 {
        let snapshot = host.path(&format!("e{number}"));
        fs::create_dir_all(snapshot.join("fs")).unwrap();
        fs::write(snapshot.join(".erofslayer"), "").unwrap();
        let content = host.path("content");
        fs::create_dir(&content).unwrap();
        fs::write(content.join(format!("file{number}")), "x").unwrap();
        fs::write(content.join("same"), number.to_string()).unwrap();
        let made = Command::new("mkfs.erofs")
            .arg("--quiet")
            .args([&snapshot.join("layer.erofs"), &content])
            .status();
        assert!(made.unwrap().success());
        fs::remove_dir_all(content).unwrap();
        layers.insert(0, snapshot.join("fs"));
    }
    let (image, _disk) = prepare(&host, &host.active("top", &layers), "c").await;
    assert!(image.is_shared());
    in_namespace(|| {
        let target = host.path("image");
        mount_image(image.path(), &target, "ro");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 101);
        assert_eq!(fs::read_to_string(target.join("same")).unwrap(), "99");
    });
}

/// What a mounted image says of itself may be the same for another image at the same place.
#[test]
fn mounted_images_are_not_taken_for_one_another() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let layer = host.path("layer");
    let read = |content: &str| {
        let tree = host.path("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("file"), content).unwrap();
        let image = host.path("layer.img");
        let _ = fs::remove_file(&image);
        let made = Command::new("mkfs.erofs")
            .args(["--quiet", "-T1"])
            .args([&image, &tree])
            .status();
        assert!(made.unwrap().success());
        fs::remove_dir_all(tree).unwrap();
        in_namespace(|| {
            mount_image(&image, &layer, "ro");
            let view = host.active(content, std::slice::from_ref(&layer));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            let (image, _disk) = runtime.block_on(prepare(&host, &view, content));
            assert!(!image.is_shared());
            let target = host.path("image");
            mount_image(image.path(), &target, "ro");
            fs::read_to_string(target.join("file")).unwrap()
        })
    };
    assert_eq!(read("one"), "one");
    assert_eq!(read("two"), "two");
}
