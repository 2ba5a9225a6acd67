//! A container's mounts.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::OnInstance;
use crate::drives::status;
use crate::fixture::{Finished, Instance, finish};
use crate::write_back;

/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] = &[
    ("volumes::files_and_directories_are_copied", copies),
    ("volumes::a_writable_bind_is_refused_or_a_copy", writable),
    ("volumes::images_are_drives", images),
    ("volumes::others_are_refused_by_name", refused),
    ("volumes::two_vms_share_an_image", shared_image),
    (
        "volumes::an_image_gives_the_guest_volumes",
        prepared_in_the_guest,
    ),
    (
        "volumes::what_was_written_comes_back",
        write_back::comes_back,
    ),
    (
        "volumes::without_the_annotation_nothing_comes_back",
        write_back::nothing_without_it,
    ),
];

const COPY: &str = "aws.firecracker.volume.copy";

/// An empty directory of the test's own.
fn host_dir(on: &Instance, name: &str) -> PathBuf {
    let dir = on.layout.dir.join(name);
    fs::create_dir_all(&dir).expect("test directory");
    dir
}

/// The argument of `ctr run --mount`.
fn mount(fstype: &str, source: &Path, destination: &str, options: &str) -> String {
    let source = source.display();
    format!("type={fstype},src={source},dst={destination},options={options}")
}

fn sh(script: &str, dir: &Path) -> Finished {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(dir);
    finish(command).expect(0)
}

fn copies(on: &Instance) {
    let dir = host_dir(on, "copies");
    sh(
        "echo 'nameserver 192.0.2.7' > resolv.conf
         mkdir -p secret/..2024; echo s3cret > secret/..2024/password; chmod 0400 secret/..2024/password
         chown 1000:1000 secret/..2024/password; ln -s ..2024 secret/..data; ln -s ..data/password secret/password",
        &dir,
    );
    let file = mount(
        "bind",
        &dir.join("resolv.conf"),
        "/etc/resolv.conf",
        "rbind:ro",
    );
    let secret = mount("bind", &dir.join("secret"), "/run/secret", "rbind:ro");
    let scratch = mount("tmpfs", Path::new("tmpfs"), "/scratch", "rw:nosuid:size=1m");
    let script = "cat /etc/resolv.conf /run/secret/password; readlink /run/secret/..data; \
                  stat -L -c '%a %u:%g' /run/secret/password; \
                  echo x 2>/dev/null > /run/secret/new || echo refused; \
                  echo kept > /scratch/file && cat /scratch/file; \
                  grep -o ' /scratch tmpfs' /proc/mounts";
    let options = ["--mount", &file, "--mount", &secret, "--mount", &scratch];
    let done = on
        .run(&options, "copies", &["/bin/sh", "-c", script])
        .expect(0);
    assert_eq!(
        done.text(),
        "nameserver 192.0.2.7\ns3cret\n..2024\n400 1000:1000\nrefused\nkept\n /scratch tmpfs\n",
        "{}",
        done.stderr
    );
}

fn writable(on: &Instance) {
    let dir = host_dir(on, "writable");
    fs::write(dir.join("file"), "host\n").expect("test file");
    let bind = mount("bind", &dir, "/data", "rbind:rw");
    let script = "echo guest >> /data/file; echo new > /data/new; cat /data/file /data/new";
    let command = ["/bin/sh", "-c", script];
    let refused = on.run(&["--mount", &bind], "writable", &command);
    assert_ne!(refused.code, 0);
    for part in ["/data", "writable bind mount", COPY, "type=ext4"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }

    let accepted = format!("{COPY}=/data");
    let options = ["--mount", &bind, "--annotation", &accepted];
    let done = on.run(&options, "writable", &command).expect(0);
    assert_eq!(done.text(), "host\nguest\nnew\n");
    assert_eq!(
        fs::read_to_string(dir.join("file")).expect("test file"),
        "host\n"
    );
    assert!(!dir.join("new").exists());
}

fn images(on: &Instance) {
    let dir = host_dir(on, "images");
    sh(
        "truncate -s 16M data.ext4; mkfs.ext4 -q -F data.ext4
         mkdir tree; echo from-erofs > tree/file; mkfs.erofs --quiet tree.erofs tree",
        &dir,
    );
    let data = mount("ext4", &dir.join("data.ext4"), "/data", "rw:noatime");
    let tree = mount("erofs", &dir.join("tree.erofs"), "/tree", "ro");
    let options = ["--mount", &data, "--mount", &tree];
    let script = "cat /tree/file; echo x 2>/dev/null > /tree/new || echo refused; echo kept >> /data/file; \
                  cat /data/file; grep -o ' /data ext4 rw,noatime' /proc/mounts";
    let command = ["/bin/sh", "-c", script];
    let done = on.run(&options, "images", &command).expect(0);
    assert_eq!(
        done.text(),
        "from-erofs\nrefused\nkept\n /data ext4 rw,noatime\n"
    );
    // The next one finds what the first wrote, and so does the host.
    let done = on.run(&options, "images", &command).expect(0);
    assert_eq!(
        done.text(),
        "from-erofs\nrefused\nkept\nkept\n /data ext4 rw,noatime\n"
    );
    let read = sh(
        "e2fsck -fn data.ext4 >&2; debugfs -R 'cat /file' data.ext4",
        &dir,
    );
    assert_eq!(read.text(), "kept\nkept\n");
}

fn refused(on: &Instance) {
    let dir = host_dir(on, "refused");
    sh(
        "mkdir large; truncate -s 20M large/file; mkfifo fifo; echo text > text",
        &dir,
    );
    let vm = "refusing";
    let annotation = format!("aws.firecracker.vm.id={vm}");
    let copied = mount("bind", &dir.join("text"), "/wanted", "rbind:ro");
    let options = ["--annotation", &annotation, "--mount", &copied];
    on.run_detached(&options, "accepted", &["/bin/sleep", "600"]);
    let made = ["accepted.copies", "accepted.disk"];
    assert_eq!(files_of(on, vm, "accepted"), made);
    for (fstype, source, options, part) in [
        (
            "bind",
            dir.join("large"),
            "rbind:ro",
            "volume_copy_limit_mib",
        ),
        ("bind", dir.join("fifo"), "rbind:ro", "FIFO"),
        ("bind", dir.join("missing"), "rbind:ro", "missing"),
        ("ext4", dir.join("text"), "ro", "holds no ext4 filesystem"),
        ("nfs", dir.join("text"), "ro", "\"nfs\""),
    ] {
        let mount = mount(fstype, &source, "/wanted", options);
        let options = ["--annotation", &annotation, "--mount", &mount];
        let failed = on.run(&options, "refused", &["/bin/true"]);
        assert_ne!(failed.code, 0, "{mount}");
        for part in [part, "/wanted"] {
            assert!(failed.stderr.contains(part), "{part}: {}", failed.stderr);
        }
        assert_eq!(files_of(on, vm, "refused"), [""; 0]);
        let slots = status(on, vm).slots;
        assert!(slots.iter().all(|slot| slot.owner != "refused"));
    }
    on.remove("accepted");
    assert_eq!(files_of(on, vm, "accepted"), [""; 0]);
    crate::shared_vm::stop_vm(on, vm);
}

/// Names of what a container has in its VM's directory.
fn files_of(on: &Instance, vm: &str, id: &str) -> Vec<String> {
    let dir = on.layout.shim_base().join(format!("default#{vm}"));
    let files = fs::read_dir(dir).expect("the VM's directory").flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names
        .filter(|name| name.starts_with(&format!("{id}.")))
        .collect();
    names.sort();
    names
}

/// Two VMs have one file of the host: each reads all of it, neither root can write to it.
fn shared_image(on: &Instance) {
    let ids = ["sharing-1", "sharing-2"];
    for id in ids {
        let vm = format!("aws.firecracker.vm.id=vm-{id}");
        let options = ["--privileged", "--annotation", &vm];
        on.run_detached(&options, id, &["/bin/sleep", "600"]);
    }
    let attached: Vec<PathBuf> = ids
        .iter()
        .map(|id| {
            let slots = status(on, &format!("vm-{id}")).slots;
            let slot = slots.iter().find(|slot| slot.host_path.ends_with(".erofs"));
            let slot = slot.expect("an attached image");
            // What the VMM has is the very file that people are told of.
            let dir = on.layout.shim_base().join(format!("default#vm-{id}"));
            let seen = fs::metadata(dir.join(format!("{}.attached", slot.name)));
            let (seen, told) = (
                seen.expect("it"),
                fs::metadata(&slot.host_path).expect("it"),
            );
            assert_eq!((seen.dev(), seen.ino()), (told.dev(), told.ino()));
            PathBuf::from(&slot.host_path)
        })
        .collect();
    let image = attached[0].clone();
    let meta = fs::metadata(&image).expect("shared image");
    let other = fs::metadata(&attached[1]).expect("shared image");
    assert_eq!((meta.dev(), meta.ino()), (other.dev(), other.ino()));
    assert_eq!(meta.permissions().mode() & 0o222, 0);

    let sum = || {
        let mut sum = Command::new("sh");
        sum.args(["-c", "sha256sum <\"$0\""]).arg(&image);
        finish(sum).expect(0).text()
    };
    let before = sum();
    // Its size tells the image's device from the others.
    let script = format!(
        "for d in /sys/class/block/vd*; do test $(cat $d/size) = {} && break; done; test $(cat $d/ro) = 1 || exit 3
         mknod /tmp/image b $(tr : ' ' <$d/dev); sha256sum </tmp/image
         blockdev --setrw /tmp/image; dd if=/dev/zero of=/tmp/image bs=4096 count=4 conv=fsync,notrunc && exit 4
         echo 3 >/proc/sys/vm/drop_caches; sha256sum </tmp/image",
        meta.len() / 512
    );
    for id in ids {
        let exec = ["task", "exec", "--exec-id", "root", id];
        let read = on.ctr(&[&exec[..], &["/bin/sh", "-c", &script]].concat());
        assert_eq!(read.expect(0).text(), format!("{before}{before}"), "{id}");
    }
    assert_eq!(sum(), before);
    for id in ids {
        on.remove(id);
        crate::shared_vm::stop_vm(on, &format!("vm-{id}"));
    }
}

/// One container copies directories of its image to where the VM's others see them ([VOL-5, 9]).
fn prepared_in_the_guest(on: &Instance) {
    let dir = host_dir(on, "in-guest");
    let annotation = "aws.firecracker.vm.id=guest-volumes";
    let programs = mount(
        "vm:bind",
        Path::new("/usr/local/bin"),
        "/hostbin",
        "bind:ro",
    );
    let volumes = mount("vm:bind", Path::new("/volumes"), "/hostvolumes", "bind:rw");
    let init = |volume: &str| {
        let input =
            serde_json::json!({"From": "/", "To": "/hostvolumes/content", "Volumes": [volume]});
        let path = dir.join("input");
        fs::write(&path, input.to_string()).expect("input");
        let options = [
            "--rm",
            "--annotation",
            annotation,
            "--mount",
            &programs,
            "--mount",
            &volumes,
        ];
        let mut run = on.run_command(&options, "content", &["/hostbin/volume-init"]);
        run.stdin(fs::File::open(path).expect("input"));
        finish(run)
    };
    assert_eq!(init("/etc").expect(0).text(), "");
    let failed = init("/missing").expect(1).text();
    let answer: serde_json::Value = serde_json::from_str(&failed).expect(&failed);
    let error = answer["Error"].as_str().expect("a text");
    assert!(error.contains("/missing"), "{error}");

    let volume = mount(
        "bind",
        Path::new("/volumes/content/etc"),
        "/copy",
        "bind:rw",
    );
    let options = ["--annotation", annotation, "--mount", &volume];
    let script = "cat /etc/group > /expected; cat /copy/group | cmp - /expected && echo same; echo kept > /copy/new";
    let done = on.run(&options, "writer", &["/bin/sh", "-c", script]);
    assert_eq!(done.expect(0).text(), "same\n");
    let done = on.run(&options, "reader", &["/bin/cat", "/copy/new"]);
    assert_eq!(done.expect(0).text(), "kept\n");
    crate::shared_vm::stop_vm(on, "guest-volumes");
}
