//! Real layers, real overlayfs, real mkfs: what a container would see on the
//! host is what the images hold.

#![allow(missing_docs)]

mod erofs_layers;
mod failures;
mod listing;
mod several;
mod snapshots;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fc_rootfs::{Disk, Image, Mount, Prepared};
use fc_test_host::{can_mount_images, in_namespace};
use rustix::mount::MountFlags;

use crate::listing::listing;
use crate::snapshots::{Host, mount_image, mount_with};

const BASE: &str = r#"
    chmod 0750 . && chown 7:8 .
    mkdir -p bin etc/old var/log gone/deep
    echo hello > bin/a && ln bin/a bin/b && chmod 4755 bin/a
    echo old > etc/old/file && echo delete > gone/deep/file && echo stays > etc/stays
    mknod null c 1 3 && mknod disk b 8 17 && mkfifo fifo && ln -s ../etc/stays bin/link
    truncate -s 20M var/log/lastlog && echo end >> var/log/lastlog
    chown 1000:70000 etc/stays && touch -d '2001-02-03 04:05:06.123456789' etc/stays
    chmod 1777 var
"#;
const CHANGES: &str = r#"
    rm -r gone
    rm -r etc/old && mkdir etc/old && echo new > etc/old/other
    echo replaced > bin/c && rm bin/link && mkdir bin/link && echo x > bin/link/file
    chmod 0600 etc/stays
    mv bin/c bin/d
"#;

/// `cap_net_raw+ep`, as `struct vfs_cap_data` of version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A layer with something of everything.
fn base(host: &Host) -> Vec<PathBuf> {
    let layers = host.layer("1", &[], BASE);
    for (file, name, value) in [
        ("bin/a", "user.note", &b"kept"[..]),
        ("bin/a", "security.capability", &CAPABILITY),
        ("etc", "trusted.mine", &[b'x'; 300]),
    ] {
        let path = layers[0].join(file);
        rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    layers
}

fn layers_of(prepared: Prepared) -> (Image, Option<Disk>) {
    match prepared {
        Prepared::Layers { image, disk } => (image, disk),
        Prepared::Device { device, .. } => panic!("{device:?} is no image"),
    }
}

async fn prepare(host: &Host, mount: &Mount, container: &str) -> (Image, Option<Disk>) {
    let mounts = [mount.clone()];
    let prepared = host.rootfs().prepare(&mounts, &host.files(container)).await;
    layers_of(prepared.unwrap())
}

fn list_image(host: &Host, image: &Path) -> Vec<String> {
    in_namespace(|| {
        let target = host.path("image");
        mount_image(image, &target, "ro");
        listing(&target)
    })
}

fn list_mount(host: &Host, mount: &Mount) -> Vec<String> {
    in_namespace(|| {
        let target = host.path("overlay");
        let options = mount.options.join(",");
        mount_with(
            "overlay",
            Path::new("overlay"),
            &target,
            MountFlags::empty(),
            &options,
        );
        listing(&target)
    })
}

#[track_caller]
fn assert_same(left: &[String], right: &[String]) {
    for (left, right) in left.iter().zip(right) {
        assert_eq!(left, right);
    }
    assert_eq!(left.len(), right.len());
}

#[tokio::test]
async fn an_image_shows_what_the_overlay_shows() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let base = base(&host);
    let layers = host.layer("2", &base, CHANGES);
    let active = host.active("3", &layers);
    let (image, disk) = prepare(&host, &active, "c").await;
    assert!(image.is_shared());
    // The root directory of the mounted snapshot is its upper directory, which is new; the image's is the top layer's.
    let [overlay, merged] = [list_mount(&host, &active), list_image(&host, image.path())];
    assert!(overlay.len() > 15);
    assert_same(&overlay[1..], &merged[1..]);
    let text = merged.join("\n");
    assert!(
        !text.contains("gone") && !text.contains("etc/old/file"),
        "{text}"
    );
    assert!(text.contains("security.capability"), "{text}");
    let allocated = fs::metadata(image.path()).unwrap().blocks() * 512;
    assert!(allocated < 4 << 20, "{allocated} bytes for a sparse file");

    let upper = in_namespace(|| {
        let target = host.path("disk");
        mount_image(disk.unwrap().path(), &target, "rw");
        assert!(target.join("work").is_dir());
        fs::metadata(target.join("upper")).unwrap()
    });
    let root = fs::metadata(&layers[0]).unwrap();
    assert_eq!(
        (upper.mode(), upper.uid(), upper.gid()),
        (root.mode(), root.uid(), root.gid())
    );
}

#[tokio::test]
async fn a_single_layer_is_still_read_as_a_layer() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let base = base(&host);
    let top = host.layer("2", &base, CHANGES)[..1].to_vec();
    let (image, _disk) = prepare(&host, &host.active("3", &top), "c").await;
    let text = list_image(&host, image.path()).join("\n");
    assert!(
        !text.contains("trusted.overlay") && !text.contains("gone"),
        "{text}"
    );
    assert!(text.contains("etc/old/other"), "{text}");
}

#[tokio::test]
async fn sixty_layers_with_long_and_odd_names() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let mut layers = Vec::new();
    for number in 0..60 {
        let dir = host.path(&format!("{}:odd/{number}", "long".repeat(40)));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file{number}")), "x").unwrap();
        fs::write(dir.join("same"), number.to_string()).unwrap();
        layers.insert(0, dir);
    }
    let (image, _disk) = prepare(&host, &host.active("top", &layers), "c").await;
    in_namespace(|| {
        let target = host.path("image");
        mount_image(image.path(), &target, "ro");
        assert_eq!(fs::read_dir(&target).unwrap().count(), 61);
        assert_eq!(fs::read_to_string(target.join("same")).unwrap(), "59");
    });
}

#[tokio::test]
async fn containers_of_one_image_share_it() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let layers = base(&host);
    let [a, b] = [host.active("2", &layers), host.active("3", &layers)];
    let ((first, first_disk), (second, second_disk)) =
        tokio::join!(prepare(&host, &a, "a"), prepare(&host, &b, "b"));
    assert_eq!(first.path(), second.path());
    assert_eq!(
        host.cached()
            .iter()
            .filter(|name| name.ends_with(".erofs"))
            .count(),
        1
    );
    let [first_disk, second_disk] = [first_disk, second_disk].map(Option::unwrap);
    assert_ne!(first_disk.path(), second_disk.path());

    let begin = Instant::now();
    let (_third, third_disk) = prepare(&host, &host.active("4", &layers), "c").await;
    println!("prepared from the cache in {:?}", begin.elapsed());
    let disk = third_disk.unwrap().path().to_path_buf();
    assert!(!disk.exists(), "a dropped disk stays");
}

#[tokio::test]
async fn an_altered_image_is_made_again() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let layers = base(&host);
    let (image, _disk) = prepare(&host, &host.active("2", &layers), "a").await;
    let before = list_image(&host, image.path());
    let mut file = fs::File::options().write(true).open(image.path()).unwrap();
    file.write_all(b"oops").unwrap();
    let old = fs::metadata(image.path()).unwrap().ino();
    let (again, _disk) = prepare(&host, &host.active("3", &layers), "b").await;
    assert_ne!(fs::metadata(again.path()).unwrap().ino(), old);
    assert_same(&before, &list_image(&host, again.path()));
}

#[tokio::test]
async fn what_a_snapshot_already_holds_is_on_the_disk() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let base = base(&host);
    let own = host.layer("2", &base, CHANGES);
    // The snapshot `2` is not committed: its directory is the upper one.
    let active = host.active("2", &own[1..]);
    assert_eq!(
        fc_rootfs::upper_dir(std::slice::from_ref(&active)),
        Some(own[0].clone())
    );
    let (image, disk) = prepare(&host, &active, "c").await;
    assert!(image.is_shared());
    let seen = in_namespace(|| {
        let [image_at, disk_at, merged] = ["image", "disk", "merged"].map(|name| host.path(name));
        mount_image(image.path(), &image_at, "ro");
        mount_image(disk.as_ref().unwrap().path(), &disk_at, "rw");
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            image_at.display(),
            disk_at.join(fc_rootfs::DISK_UPPER).display(),
            disk_at.join(fc_rootfs::DISK_WORK).display()
        );
        mount_with(
            "overlay",
            Path::new("overlay"),
            &merged,
            MountFlags::empty(),
            &options,
        );
        listing(&merged)
    });
    // mkfs.ext4 before 1.47.1 copies no fractions of seconds.
    let whole = |lines: Vec<String>| -> Vec<String> {
        let cut = |line: String| match line.split_once(" at ") {
            Some((line, time)) => {
                let (seconds, rest) = time.split_once('.').unwrap();
                let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
                format!("{line} at {seconds}{rest}")
            }
            None => line,
        };
        lines.into_iter().map(cut).collect()
    };
    assert_same(&whole(list_mount(&host, &active)), &whole(seen));
    drop(disk);
    let left: Vec<_> = fs::read_dir(host.path("vm")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_read_only_snapshot_with_content_is_an_image_of_its_own() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let base = base(&host);
    let own = host.layer("2", &base, CHANGES);
    let mut view = host.active("2", &own[1..]);
    view.options.push("ro".into());
    let (image, disk) = prepare(&host, &view, "c").await;
    assert!(!image.is_shared() && disk.is_none());
    assert_same(&list_mount(&host, &view), &list_image(&host, image.path()));
    let path = image.path().to_path_buf();
    drop(image);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_view_needs_no_disk() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let layers = base(&host);
    let view = Mount {
        fstype: "bind".into(),
        source: layers[0].to_str().unwrap().into(),
        target: String::new(),
        options: vec!["rbind".into(), "ro".into()],
    };
    let (image, disk) = prepare(&host, &view, "c").await;
    assert!(disk.is_none());
    assert_same(&listing(&layers[0]), &list_image(&host, image.path()));
}

/// How long a container may wait for its disk; on a slow machine, a quarter of what making image and disk takes there.
const READY: Duration = Duration::from_millis(20);

#[tokio::test]
async fn a_disk_is_ready_at_once_thin_and_clean() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let layers = host.layer("1", &[], "chmod 0711 .");
    let begin = Instant::now();
    drop(prepare(&host, &host.active("2", &layers), "first").await);
    let ready = READY.max(begin.elapsed() / 4);
    let mut times = Vec::new();
    // On a busy machine some try or other is not disturbed.
    let begin = Instant::now();
    while !times.iter().any(|took| *took < ready) {
        assert!(begin.elapsed() < Duration::from_secs(60), "{times:?}");
        let number = times.len();
        let mount = host.active(&format!("s{number}"), &layers);
        let begin = Instant::now();
        let (_image, disk) = prepare(&host, &mount, &format!("c{number}")).await;
        times.push(begin.elapsed());
        let disk = disk.unwrap();
        let metadata = fs::metadata(disk.path()).unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 4 << 20);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let check = Command::new("e2fsck")
            .args(["-fn"])
            .arg(disk.path())
            .output()
            .unwrap();
        assert!(
            check.status.success(),
            "{}",
            String::from_utf8_lossy(&check.stdout)
        );
    }
    println!("image and disk from the cache: {times:?}");
}
