//! Files and directories that are copied.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use fc_errors::chain;
use fc_test_host::{can_mount_images, in_namespace, sh};
use fc_volume::{CopySettings, Volumes};
use serde_json::json;

use crate::host::{Host, MIB, guest_mounts, spec, volumes};

/// What a file looks like, names and links included.
const LIST: &str = "find . -not -name lost+found -printf '%P %y %m %U:%G %Ts %l\\n' | sort";

fn bind(source: &Path, destination: &str, options: &[&str]) -> serde_json::Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

#[tokio::test]
async fn files_and_directories_share_one_image() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    host.sh("echo 'nameserver 192.0.2.1' > resolv.conf
        mkdir -p secret/..2024_01 secret/deep/er
        echo s3cret > secret/..2024_01/password; chmod 0400 secret/..2024_01/password
        ln -s ..2024_01 secret/..data; ln -s ..data/password secret/password
        ln -s /etc/shadow secret/outside
        echo x > secret/deep/er/file; chown 12:34 secret/deep/er/file; chmod 04711 secret/deep/er/file
        touch -d @1000000000 secret/deep/er/file secret/deep");
    let mounts = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        bind(&host.path("resolv.conf"), "/etc/resolv.conf", &["rbind", "ro"]),
        bind(Path::new("/data/x"), "/x", &["rbind", "rw"]),
        bind(&host.path("secret"), "/run/secret", &["bind", "nosuid", "ro"]),
    ]);
    let begin = std::time::Instant::now();
    let prepared = host.prepare(&mounts, None).await.unwrap();
    println!("a file and a directory copied in {:?}", begin.elapsed());
    let mut expected = mounts.clone();
    expected[1]["source"] = json!("/container/c/volumes/0");
    expected[3]["source"] = json!("/container/c/volumes/1");
    assert_eq!(guest_mounts(&prepared), expected);

    let [drive] = prepared.drives() else {
        panic!("{:?}", prepared.drives());
    };
    assert!(drive.read_only);
    assert_eq!(
        (drive.fstype.as_str(), drive.destination.as_str()),
        ("erofs", "/container/c/volumes")
    );
    assert_eq!(
        fs::metadata(drive.file.path()).unwrap().mode() & 0o777,
        0o600
    );
    assert_eq!(
        host.in_drive(&prepared, 0, "cat 0"),
        "nameserver 192.0.2.1\n"
    );
    let copied = host.in_drive(&prepared, 0, &format!("cd 1; {LIST}"));
    assert_eq!(copied, sh(LIST, &host.path("secret")));
    assert!(
        copied.contains("..data l 777") && copied.contains("outside l"),
        "{copied}"
    );
    assert_eq!(host.in_drive(&prepared, 0, "cat 1/password"), "s3cret\n");

    assert_eq!(host.files(), ["c.copies"]);
    drop(prepared);
    assert_eq!(host.files(), [""; 0]);
}

#[tokio::test]
async fn a_writable_bind_needs_the_annotation() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir data other; echo original > data/file; echo o > other/file; echo f > single");
    let mounts = json!([
        bind(&host.path("data"), "/data", &["rbind", "rw"]),
        bind(&host.path("other"), "/other", &["rbind", "ro"]),
        bind(&host.path("single"), "/single", &["bind"]),
    ]);
    for (annotation, refused) in [
        (None, "/data"),
        (Some("false"), "/data"),
        (Some("/data"), "/single"),
    ] {
        let error = host.prepare(&mounts, annotation).await.unwrap_err();
        assert!(error.is_refusal());
        let text = chain(&error);
        assert!(text.contains(&format!("mount at {refused} ")), "{text}");
        assert!(
            text.contains("writable bind mount") && text.contains("aws.firecracker.volume.copy"),
            "{text}"
        );
        assert_eq!(host.files(), [""; 0]);
    }
    let error = host.prepare(&mounts, Some("/nowhere")).await.unwrap_err();
    assert!(chain(&error).contains("/nowhere"), "{error}");

    for annotation in ["true", "/data, /single"] {
        let prepared = host.prepare(&mounts, Some(annotation)).await.unwrap();
        let mut expected = mounts.clone();
        expected[0]["source"] = json!("/container/c/copies/0");
        expected[1]["source"] = json!("/container/c/volumes/0");
        expected[2]["source"] = json!("/container/c/copies/1");
        assert_eq!(guest_mounts(&prepared), expected);
        let drives: Vec<_> = prepared
            .drives()
            .iter()
            .map(|drive| (drive.fstype.as_str(), drive.read_only))
            .collect();
        assert_eq!(drives, [("erofs", true), ("ext4", false)]);
        let file = prepared.drives()[1].file.path();
        assert_eq!(fs::metadata(file).unwrap().len(), 64 * MIB);
        let read = host.in_drive(
            &prepared,
            1,
            "cat 0/file 1; echo changed > 0/file; echo more > 0/new; cat 0/file",
        );
        assert_eq!(read, "original\nf\nchanged\n");
        assert_eq!(
            fs::read_to_string(host.path("data/file")).unwrap(),
            "original\n"
        );
        assert_eq!(host.in_drive(&prepared, 0, "cat 0/file"), "o\n");
    }
}

#[tokio::test]
async fn too_much_is_refused_with_its_size() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir big; truncate -s 700K big/a; truncate -s 700K big/b; truncate -s 600K half; truncate -s 500K other
        mkdir many; for i in $(seq 300); do : > many/$i; done");
    let one = json!([bind(&host.path("big"), "/big", &["ro"])]);
    let text = chain(&host.prepare(&one, None).await.unwrap_err());
    assert!(
        text.contains("/big") && text.contains("1.4 MiB in 3 entries"),
        "{text}"
    );
    assert!(
        text.contains("1.0 MiB") && text.contains("volume_copy_limit_mib"),
        "{text}"
    );
    // Empty files are not for nothing.
    let many = json!([bind(&host.path("many"), "/many", &["ro"])]);
    let text = chain(&host.prepare(&many, None).await.unwrap_err());
    assert!(text.contains("1.2 MiB in 301 entries"), "{text}");
    // The limit is for all of a container's together.
    let two = json!([
        bind(&host.path("half"), "/a", &["ro"]),
        bind(&host.path("other"), "/b", &["rw"])
    ]);
    let text = chain(&host.prepare(&two, Some("true")).await.unwrap_err());
    assert!(
        text.contains("mount at /b ") && text.contains("500 KiB") && text.contains("424 KiB"),
        "{text}"
    );
    assert_eq!(host.files(), [""; 0]);
}

#[tokio::test]
async fn a_name_that_mkfs_erofs_does_not_store_is_told_as_the_host_has_it() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir short; touch short/file; mkdir -p long/dir");
    let long = host.path("long/dir").join("x".repeat(255));
    fs::write(&long, "").unwrap();
    let mounts = json!([
        bind(&host.path("short"), "/a", &["ro"]),
        bind(&host.path("long"), "/b", &["ro"]),
    ]);
    // Stands for a mkfs.erofs that does not store it.
    let volumes = Volumes::new(CopySettings {
        mkfs_erofs: "false".into(),
        ..CopySettings::new(MIB)
    });
    let prepared = volumes.prepare(&spec(&mounts, None), &host.request()).await;
    let text = chain(&prepared.unwrap_err());
    assert!(text.contains(&format!("{long:?}")), "{text}");
    assert_eq!(host.files(), [""; 0]);
}

#[tokio::test]
async fn what_cannot_be_copied_is_named() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir -p fifo socket device loop; mkfifo fifo/pipe; mknod device/null c 1 3; mknod loop/dev b 7 0
        ln -s loop/dev loop.link");
    let _socket = std::os::unix::net::UnixListener::bind(host.path("socket/listening")).unwrap();
    for (source, name) in [
        (host.path("fifo"), "fifo/pipe\" is a FIFO"),
        (host.path("fifo/pipe"), "fifo/pipe\" is a FIFO"),
        (host.path("socket"), "socket/listening\" is a socket"),
        (host.path("device"), "device/null\" is a character device"),
        (host.path("loop"), "loop/dev\" is a block device, which"),
        (host.path("loop.link"), "is a block device: give it with"),
        ("/proc/sys/net".into(), "host's proc"),
        ("/proc/version".into(), "host's proc"),
        ("/sys".into(), "host's sysfs"),
        (host.path("nothing"), "cannot open"),
    ] {
        let mounts = json!([bind(&source, "/d", &["rbind", "ro"])]);
        let error = host.prepare(&mounts, None).await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains(name) && text.contains("/d"), "{text}");
        assert_eq!(error.is_refusal(), name != "cannot open", "{text}");
    }
    assert_eq!(host.files(), [""; 0]);
}

#[test]
fn bind_shows_one_filesystem_and_rbind_all() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir -p tree/sub; echo below > tree/sub/below");
    let mounts = |option: &str| json!([bind(&host.path("tree"), "/d", &[option, "ro"])]);
    let volumes = volumes();
    // The whole of it on one thread, which has mounts of its own.
    let listed = |option: &str| {
        let spec = spec(&mounts(option), None);
        let request = host.request();
        in_namespace(|| {
            sh(
                "mount -t tmpfs none tree/sub; echo above > tree/sub/above",
                &host.path("."),
            );
            let runtime = tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap();
            // Its blocking threads begin in this thread's namespace.
            let prepared = runtime.block_on(volumes.prepare(&spec, &request)).unwrap();
            host.in_drive(&prepared, 0, "ls 0/sub")
        })
    };
    assert_eq!(listed("bind"), "below\n");
    assert_eq!(listed("rbind"), "above\n");
}

/// Somebody who may write to the directory turns a file into a link to what they may not read.
#[test]
fn links_are_never_followed_while_somebody_swaps_them() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    host.sh("mkdir tree secret; echo open > tree/file; echo SECRET > secret/file");
    let [file, spare] = ["tree/file", "tree/spare"].map(|name| host.path(name));
    let copying = AtomicBool::new(true);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mounts = json!([bind(&host.path("tree"), "/d", &["ro"])]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while copying.load(Ordering::Relaxed) {
                symlink(host.path("secret/file"), &spare).unwrap();
                fs::rename(&spare, &file).unwrap();
                fs::write(&spare, "open\n").unwrap();
                fs::rename(&spare, &file).unwrap();
            }
        });
        let _stop = Stop(&copying);
        for _ in 0..20 {
            let prepared = runtime.block_on(host.prepare(&mounts, None)).unwrap();
            let copied = host.in_drive(&prepared, 0, "find 0 -type f -exec cat {} +");
            assert!(!copied.contains("SECRET"), "{copied}");
        }
    });
}

/// Ends the other thread, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn slots_are_known_without_looking() {
    let slots = |mounts: serde_json::Value, annotation: Option<&str>| {
        let slots = volumes().slots(&spec(&mounts, annotation)).unwrap();
        (slots.read_only, slots.writable)
    };
    let binds = json!([
        bind(Path::new("/nonexistent/a"), "/a", &["ro"]),
        bind(Path::new("/nonexistent/b"), "/b", &["ro"]),
        bind(Path::new("/nonexistent/c"), "/c", &["rw"]),
    ]);
    assert_eq!(
        slots(json!([{"destination": "/t", "type": "tmpfs"}]), None),
        (0, 0)
    );
    assert_eq!(slots(binds.clone(), None), (1, 0));
    assert_eq!(slots(binds, Some("true")), (1, 1));
    let images = json!([
        {"destination": "/i", "type": "ext4", "source": "/i", "options": ["ro"]},
        {"destination": "/j", "type": "ext4", "source": "/j"},
        {"destination": "/k", "type": "erofs", "source": "/k"},
        {"destination": "/l", "type": "nfs", "source": "/l"},
    ]);
    assert_eq!(slots(images, None), (2, 1));
    assert!(volumes().slots(b"[").is_err());
}

#[tokio::test]
async fn permissions_of_an_unreadable_file_survive() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    fs::write(host.path("key"), "k").unwrap();
    fs::set_permissions(host.path("key"), fs::Permissions::from_mode(0o0)).unwrap();
    let prepared = host
        .prepare(&json!([bind(&host.path("key"), "/key", &["ro"])]), None)
        .await;
    assert_eq!(
        host.in_drive(&prepared.unwrap(), 0, "stat -c %a 0; cat 0"),
        "0\nk"
    );
}
