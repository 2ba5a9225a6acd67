//! A container's root file system from several snapshotters.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::ctl::Ctl;
use crate::fixture::{Flavor, Instance, Setup, finish};
use crate::lifecycle::expect_gone;
use crate::{OnInstance, OnSetup};

/// Run with every containerd.
pub const SMOKE: &[(&str, OnInstance)] = &[("rootfs::overlayfs_is_merged_and_writable", overlayfs)];
/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] = &[
    ("rootfs::native_snapshotter", native),
    ("rootfs::read_only_rootfs", read_only),
    ("rootfs::disk_size_by_annotation", disk_size),
];
/// The same, with image caches of their own.
pub const OWN: &[(&str, OnSetup)] = &[
    ("rootfs::second_container_reuses_the_image", reused),
    ("rootfs::an_altered_image_is_made_again", altered),
];
/// Need a containerd newer than Debian 12's.
pub const NEWER: &[(&str, OnSetup)] = &[("rootfs::blockfile_snapshotter", blockfile)];
/// Need containerd 2.1 or newer.
pub const NEWER_2_1: &[(&str, OnSetup)] = &[("rootfs::erofs_snapshotter", erofs)];

/// Shows both layers, then writes where the image has content.
const PROBE: [&str; 3] = [
    "/bin/sh",
    "-c",
    "cat /etc/second-layer; test ! -e /etc/deleted-by-second-layer && echo merged; \
     echo more >> /etc/second-layer && rm /etc/group && mkdir /new && cat /etc/second-layer; \
     grep -o ' / [a-z0-9]* ' /proc/mounts",
];

fn overlayfs(on: &Instance) {
    for id in ["overlay-1", "overlay-2"] {
        // The second container must not see what the first wrote.
        let done = on.run(&[], id, &PROBE).expect(0);
        assert_eq!(
            done.text(),
            "second\nmerged\nsecond\nmore\n / overlay \n",
            "{}",
            done.stderr
        );
    }
}

fn native(on: &Instance) {
    let native = ["--snapshotter", "native"];
    let done = on.run(&native, "native", &PROBE).expect(0);
    assert!(
        done.text().starts_with("second\nmerged\nsecond\nmore\n"),
        "{done:?}"
    );
}

fn reused(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let images = || {
        let dir = on.layout.dir.join("image-cache");
        let mut all: Vec<(String, u64, i64, i64)> = std::fs::read_dir(dir)
            .expect("image cache")
            .flatten()
            .filter(|e| e.path().extension().is_some_and(|x| x == "erofs"))
            .map(|e| {
                let meta = e.metadata().expect("stat");
                let name = e.file_name().to_string_lossy().into_owned();
                (name, meta.ino(), meta.mtime(), meta.mtime_nsec())
            })
            .collect();
        all.sort();
        all
    };
    on.run(&[], "reuse-1", &["/bin/true"]).expect(0);
    let before = images();
    assert!(!before.is_empty());
    on.run(&[], "reuse-2", &["/bin/true"]).expect(0);
    assert_eq!(images(), before);
}

/// What `doctor` finds whatever its times say, and what is noticed at the next use; nothing that a VM uses is removed.
fn altered(setup: &Setup, flavor: &Flavor) {
    let on = &Instance::start(setup, flavor);
    let ctl = Ctl { setup, on };
    let pruned = || {
        let removed = ctl.json(&["cache", "prune"]);
        let images = removed.as_array().expect("entries").iter();
        images.filter(|entry| entry["kind"] == "image").count()
    };
    on.run_detached(&[], "user", &["/bin/sleep", "600"]);
    assert_eq!(pruned(), 0, "a VM uses it");
    on.remove("user");
    expect_gone(on);

    let image = only_image(on);
    let before = std::fs::metadata(&image).expect("the image");
    let healthy = || {
        !ctl.run(&["doctor", "--full"])
            .text()
            .contains("is not as it was made")
    };
    assert!(healthy());
    let file = std::fs::File::options()
        .write(true)
        .open(&image)
        .expect("root may");
    let times = before.modified().expect("its time");
    file.write_all_at(b"altered", before.len() / 2)
        .expect("write");
    file.set_modified(times).expect("set its time");
    drop(file);
    assert!(!healthy());

    // As it is left by whoever does not hide it.
    let file = std::fs::File::options()
        .write(true)
        .open(&image)
        .expect("root may");
    file.set_modified(std::time::SystemTime::now())
        .expect("set its time");
    drop(file);
    let done = on.run(&[], "next", &PROBE).expect(0);
    assert_eq!(done.text(), "second\nmerged\nsecond\nmore\n / overlay \n");
    assert_eq!(only_image(on), image);
    assert_ne!(
        std::fs::metadata(&image).expect("another").ino(),
        before.ino()
    );
    assert!(healthy());
    // Who ran in the VM is told of its end before the VM's shim has ended.
    expect_gone(on);
    assert_eq!(pruned(), 1);
}

/// The one image in the instance's cache.
fn only_image(on: &Instance) -> PathBuf {
    let dir = std::fs::read_dir(on.layout.dir.join("image-cache")).expect("image cache");
    let mut images = dir.flatten().map(|entry| entry.path());
    let image = images.find(|path| path.extension().is_some_and(|x| x == "erofs"));
    image.expect("an image")
}

fn read_only(on: &Instance) {
    let done = on.run(
        &["--read-only"],
        "read-only",
        &[
            "/bin/sh",
            "-c",
            "touch /x 2>/dev/null && echo written || echo refused",
        ],
    );
    assert_eq!(done.expect(0).text(), "refused\n");
}

fn disk_size(on: &Instance) {
    let name = "aws.firecracker.disk.size_mib";
    let script = ["/bin/sh", "-c", "df -m / | awk 'END {print $2}'"];
    let sized = format!("{name}=64");
    let done = on
        .run(&["--annotation", &sized], "sized", &script)
        .expect(0);
    // The file system's own tables take some.
    let size: u32 = done.text().trim().parse().expect("a number");
    assert!((40..=64).contains(&size), "{size}");
    let wrong = format!("{name}=large");
    let refused = on.run(&["--annotation", &wrong], "sized", &["/bin/true"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains(name), "{}", refused.stderr);
}

/// A snapshot that is an image file goes to the VM as it is, with its own file system.
fn blockfile(setup: &Setup, flavor: &Flavor) {
    let scratch = setup.fresh_dir().join("scratch");
    make_ext4(&scratch, "64M");
    let extra = format!(
        r#"[plugins."io.containerd.snapshotter.v1.blockfile"]
  scratch_file = "{}"
  fs_type = "ext4"
  mount_options = []
  recreate_scratch = false
"#,
        scratch.display()
    );
    let on = Instance::with(setup, flavor, |_| {}, &extra);
    // Unpacking for another snapshotter than the default happens in `ctr run`.
    let done = on
        .run(
            &["--snapshotter", "blockfile"],
            "blockfile",
            &[
                "/bin/sh",
                "-c",
                "cat /etc/second-layer; grep -o ' / [a-z0-9]* ' /proc/mounts",
            ],
        )
        .expect(0);
    assert_eq!(done.text(), "second\n / ext4 \n");
}

/// Layers that are EROFS images already, as containerd 2.1 makes them.
fn erofs(setup: &Setup, flavor: &Flavor) {
    // Its own way of making layers needs a newer mkfs.erofs than Debian 12's: they are unpacked into it instead.
    let extra = r#"[plugins."io.containerd.service.v1.diff-service"]
  default = ["walking"]
"#;
    let on = Instance::with(setup, flavor, |_| {}, extra);
    let erofs = ["--snapshotter", "erofs"];
    for id in ["erofs-1", "erofs-2"] {
        let done = on.run(&erofs, id, &PROBE).expect(0);
        assert_eq!(
            done.text(),
            "second\nmerged\nsecond\nmore\n / overlay \n",
            "{}",
            done.stderr
        );
    }
    let dir = on.layout.dir.clone();
    drop(on);
    // The snapshotter leaves its layers mounted when containerd ends.
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for place in places.filter(|place| Path::new(place).starts_with(&dir)) {
        let mut umount = std::process::Command::new("umount");
        umount.arg(place);
        finish(umount).expect(0);
    }
}

fn make_ext4(path: &Path, size: &str) {
    let mut truncate = std::process::Command::new("truncate");
    truncate.args(["-s", size]).arg(path);
    finish(truncate).expect(0);
    let mut mkfs = std::process::Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-O", "^has_journal"]).arg(path);
    finish(mkfs).expect(0);
}
