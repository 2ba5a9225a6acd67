//! Root file systems of mounts that the snapshotters at hand do not give: each file system, several mounts, and
//! layers with something of everything. One VM for all of them.

use std::path::Path;
use std::process::Command;

use fc_proto::task::api::Mount;
use fc_proto::ttrpc::Code;

use crate::OnInstance;
use crate::daemon::failed;
use crate::fixture::{Finished, Instance, finish};
use crate::fs_image::{self, Loop};
use crate::shared_vm::stop_vm;
use crate::task_api::{Tasks, mount, mount_at};

/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] = &[("rootfs::of_any_mounts", of_any_mounts)];

/// Prints what a tree is like; the same program runs on the host and in the container.
const LISTER: &str = env!("CARGO_BIN_EXE_list-tree");

fn of_any_mounts(on: &Instance) {
    let vm = "any-mounts";
    let annotation = format!("aws.firecracker.vm.id={vm}");
    on.run_detached(
        &["--annotation", &annotation],
        "keeper",
        &["/bin/sleep", "600"],
    );
    let dir = on.layout.dir.join(vm);
    std::fs::create_dir_all(&dir).expect("a directory");
    let tasks = Tasks::of(on, vm);
    every_file_system(&tasks, &dir);
    several(&tasks, &dir);
    everything_survives(&tasks, &dir);
    on.remove("keeper");
    stop_vm(on, vm);
}

fn sh(script: &str, dir: &Path) -> Finished {
    let mut command = Command::new("unshare");
    // What is mounted is gone with the shell.
    command.args(["--mount", "sh", "-euc", script]);
    command.current_dir(dir);
    finish(command).expect(0)
}

/// Each type as an image file, and one on a block device: with its options, and with what was written to it.
fn every_file_system(tasks: &Tasks, dir: &Path) {
    let root_mount = "grep -o '^[^ ]* / [a-z0-9]* [a-z,]*noatime' /proc/mounts | grep -o ' / .*'";
    for fstype in fs_image::WRITABLE {
        let (tree, image) = (dir.join(format!("{fstype}-tree")), dir.join(fstype));
        fs_image::tree(&tree, fstype);
        fs_image::make(fstype, &tree, &image);
        let rootfs = [mount(fstype, &image, &["loop", "noatime"])];
        let script = format!("cat /hello; {root_mount}; md5sum /bin/busybox >/sum; sync");
        let text = tasks.sh(fstype, &rootfs, &script);
        assert_eq!(text, format!("{fstype} / {fstype} rw,noatime\n"));
        fs_image::check(fstype, &image);
        // Others get it from a block device now, as devmapper's containers do: the first one writes to it.
        let device = Loop::attach(&image);
        let rootfs = [mount(fstype, device.device(), &["rw"])];
        tasks.sh(fstype, &rootfs, "md5sum /sum >/sum-of-sum; sync");
        let rootfs = [mount(fstype, device.device(), &["ro"])];
        let script = "cat /hello; md5sum -c /sum /sum-of-sum; touch /new 2>/dev/null && exit 9; \
                      grep -o ' / [a-z0-9]* ro' /proc/mounts";
        let text = tasks.sh(fstype, &rootfs, script);
        assert_eq!(
            text,
            format!("{fstype}/bin/busybox: OK\n/sum: OK\n / {fstype} ro\n"),
            "read-only"
        );
        drop(device);
        fs_image::check(fstype, &image);
    }
    for fstype in fs_image::READ_ONLY {
        let (tree, image) = (dir.join(format!("{fstype}-tree")), dir.join(fstype));
        fs_image::tree(&tree, fstype);
        fs_image::make(fstype, &tree, &image);
        let rootfs = [mount(fstype, &image, &["loop", "ro"])];
        let script =
            "cat /hello; touch /new 2>/dev/null && exit 9; grep -o ' / [a-z0-9]* ro' /proc/mounts";
        let text = tasks.sh(fstype, &rootfs, script);
        assert_eq!(text, format!("{fstype} / {fstype} ro\n"));
    }
}

/// Layers at the root, an image file and a directory at targets below: one tree in the container, and what it writes
/// goes to none of them.
fn several(tasks: &Tasks, dir: &Path) {
    let dir = dir.join("several");
    fs_image::tree(&dir.join("lower"), "layer");
    fs_image::tree(&dir.join("inner"), "image");
    for name in ["upper", "work", "bound", "lower/data/deep", "inner/at"] {
        std::fs::create_dir_all(dir.join(name)).expect("a directory");
    }
    std::fs::write(dir.join("bound/file"), "bound").expect("a file");
    let image = dir.join("image");
    fs_image::make("ext4", &dir.join("inner"), &image);
    let before = fs_image::sha256(&image);
    let rootfs = [
        overlay(&dir, "lower"),
        mount_at("/data", "ext4", &image, &["loop"]),
        mount_at("/data/at", "bind", &dir.join("bound"), &["rbind"]),
    ];
    let script = "cat /hello /data/hello /data/at/file; test -e /data/deep && exit 8; \
                  echo new >/data/at/file; rm /data/hello; echo new >/hello; \
                  cat /hello /data/at/file; grep -o ' / overlay' /proc/mounts";
    let text = tasks.sh("several", &rootfs, script);
    assert_eq!(text, "layerimageboundnew\nnew\n / overlay\n");
    assert_eq!(fs_image::sha256(&image), before);
    assert_eq!(std::fs::read(dir.join("bound/file")).expect("it"), b"bound");

    let no_root = [mount_at("/data", "ext4", &image, &["loop"])];
    let (code, text) = failed(tasks.start("refused", &no_root, &["/bin/sh"]));
    assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
    assert!(text.contains("/data"), "{text}");
}

/// An active snapshot as containerd's snapshotter describes it, on directories of `dir`.
fn overlay(dir: &Path, lower: &str) -> Mount {
    let path = |name: &str| dir.join(name).display().to_string();
    let lower: Vec<String> = lower.split(':').map(path).collect();
    let options = [
        format!("lowerdir={}", lower.join(":")),
        format!("upperdir={}", path("upper")),
        format!("workdir={}", path("work")),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    mount("overlay", Path::new("overlay"), &options)
}

/// `cap_net_raw+ep`, as `struct vfs_cap_data` of version 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Two layers and what a snapshot holds already, listed on the host and in the container.
fn everything_survives(tasks: &Tasks, dir: &Path) {
    let dir = dir.join("everything");
    fs_image::tree(&dir.join("1"), "first");
    std::fs::copy(LISTER, dir.join("1/list-tree")).expect("the lister");
    sh(
        "mkdir -p 2 upper work w merged 1/t && cd 1/t
         chmod 0750 . && chown 7:8 . && mkdir -p bin etc/old var/log gone/deep
         echo hello >bin/a && ln bin/a bin/b && chmod 4755 bin/a && echo x >bin/group && chmod 2711 bin/group
         echo old >etc/old/file && echo delete >gone/deep/file && echo stays >etc/stays
         mknod null c 1 3 && mknod disk b 8 17 && mkfifo fifo && ln -s ../etc/stays bin/link
         truncate -s 20M var/log/lastlog && echo end >>var/log/lastlog
         chown 1000:70000 etc/stays && touch -d '2001-02-03 04:05:06.123456789' etc/stays && chmod 1777 var",
        &dir,
    );
    for (file, name, value) in [
        ("bin/a", "user.note", &b"kept"[..]),
        ("bin/a", "security.capability", &CAPABILITY),
        ("etc", "trusted.mine", &[b'x'; 300]),
    ] {
        let path = dir.join("1/t").join(file);
        rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).expect(name);
    }
    // Whiteouts and opaque directories as the kernel makes them: in the second layer, then in the snapshot.
    sh(
        "mount -t overlay -o lowerdir=1,upperdir=2,workdir=w overlay merged && cd merged/t
         rm -r gone && rm -r etc/old && mkdir etc/old && echo new >etc/old/other
         echo replaced >bin/c && rm bin/link && mkdir bin/link && echo x >bin/link/file && chmod 0600 etc/stays
         cd ../.. && umount merged
         mount -t overlay -o lowerdir=2:1,upperdir=upper,workdir=work overlay merged && cd merged/t
         rm bin/c fifo && rm -r etc/old && mkdir etc/old && echo newest >etc/old/again
         # mkfs.ext4 before 1.47.1 copies no fractions of seconds.
         cd ../.. && umount merged && find upper -exec touch -h -d '2002-03-04 05:06:07' {} +",
        &dir,
    );
    let rootfs = [overlay(&dir, "2:1")];
    let host = sh(
        "mount -t overlay -o ro,lowerdir=upper:2:1 overlay merged && merged/list-tree merged/t",
        &dir,
    );
    let host = host.text();
    for part in [
        "bin/a 104755",
        "security.capability",
        "trusted.mine",
        "again",
        "20971524 bytes",
        "device 103",
    ] {
        assert!(host.contains(part), "{part}: {host}");
    }
    for part in ["gone", "fifo", "other", "overlay."] {
        assert!(!host.contains(part), "{part}: {host}");
    }
    let guest = tasks.run("everything", &rootfs, &["/list-tree", "/t"]);
    for (guest, host) in guest.lines().zip(host.lines()) {
        assert_eq!(guest, host);
    }
    assert_eq!(guest.lines().count(), host.lines().count());
}
