//! Volumes that a client makes.

use std::fs;
use std::io;

use fc_errors::chain;
use fc_test_host::{can_mount_images, in_namespace, sh};
use fc_volume::{GuestImage, HostVolume, Set, SetError, VM_PATH, VolumeMount, VolumeProvider};
use serde_json::json;

use crate::host::{Host, MIB};

fn set(host: &Host) -> Set {
    host.sh("mkdir -p content/deep; echo hello > content/deep/file; chown 7:8 content/deep/file");
    let mut set = Set::in_directory(host.path("vm"));
    set.add(HostVolume::empty("scratch").unwrap()).unwrap();
    set.add(HostVolume::from_host("content", host.path("content")).unwrap())
        .unwrap();
    set
}

#[test]
fn a_set_becomes_a_drive_mount() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let mut set = set(&host);
    let wanted = [
        VolumeMount::new("content", "/c").read_only(),
        VolumeMount::new("scratch", "/s"),
    ];
    assert!(matches!(set.mounts(&wanted), Err(SetError::NotPrepared)));
    let image = set.prepare_drive_mount(20 * MIB).unwrap();
    let drive = image.drive_mount();
    assert_eq!(drive.HostPath, image.path().to_str().unwrap());
    assert_eq!(
        (drive.VMPath.as_str(), drive.FilesystemType.as_str()),
        (VM_PATH, "ext4")
    );
    assert!(drive.IsWritable);
    assert_eq!(
        set.mounts(&wanted).unwrap(),
        [
            json!({"type": "bind", "source": "/vmv/content", "destination": "/c", "options": ["bind", "ro"]}),
            json!({"type": "bind", "source": "/vmv/scratch", "destination": "/s", "options": ["bind", "rw"]}),
        ]
    );
    let unknown = set.mounts(&[VolumeMount::new("other", "/o")]).unwrap_err();
    assert_eq!(unknown.to_string(), "failed to find volume \"other\"");

    let target = host.path("mounted");
    fs::create_dir(&target).unwrap();
    let seen = in_namespace(|| {
        sh(
            &format!("mount -o loop {} mounted", image.path().display()),
            &host.path("."),
        );
        sh(
            "cat content/deep/file; stat -c %u:%g content/deep/file; stat -c %a scratch; echo x > scratch/y",
            &target,
        )
    });
    assert_eq!(seen, "hello\n7:8\n755\n");
    assert_eq!(host.files().len(), 1);
    drop(image);
    assert_eq!(host.files(), [""; 0]);
}

#[test]
fn a_set_becomes_a_directory() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let mut set = set(&host);
    let dir = set.prepare_directory().unwrap();
    assert_eq!(
        fs::read_to_string(dir.path().join("content/deep/file")).unwrap(),
        "hello\n"
    );
    assert!(dir.path().join("scratch").is_dir());
    let mounts = set.mounts(&[VolumeMount::new("scratch", "/s")]).unwrap();
    assert_eq!(mounts[0]["source"], json!(dir.path().join("scratch")));
    drop(dir);
    assert_eq!(host.files(), [""; 0]);
}

#[test]
fn what_does_not_fit_or_exist_is_told() {
    if !can_mount_images() {
        return;
    }
    let host = Host::new();
    let mut set = set(&host);
    host.sh("head -c 9000000 /dev/urandom > content/large; mkfifo fifo");
    let text = chain(&set.prepare_drive_mount(u64::MAX).unwrap_err());
    assert!(text.contains("large"), "{text}");
    let text = chain(&set.prepare_drive_mount(8 * MIB).unwrap_err());
    assert!(
        text.contains("too small") && text.contains("mkfs.ext4"),
        "{text}"
    );
    for (name, content) in [
        ("missing", host.path("nowhere")),
        ("file", host.path("content/large")),
        // Opening it would wait for somebody to write.
        ("fifo", host.path("fifo")),
    ] {
        let mut set = Set::in_directory(host.path("vm"));
        set.add(HostVolume::from_host(name, &content).unwrap())
            .unwrap();
        let text = chain(&set.prepare_drive_mount(8 * MIB).unwrap_err());
        assert!(text.contains(content.to_str().unwrap()), "{text}");
    }
    assert_eq!(host.files(), [""; 0]);
}

struct Image(Vec<&'static str>);

impl VolumeProvider for Image {
    fn name(&self) -> &'static str {
        "image"
    }

    fn volumes(&self) -> io::Result<Vec<(HostVolume, String)>> {
        let volume = |name: &&str| (HostVolume::empty(name).unwrap(), format!("/var/{name}"));
        Ok(self.0.iter().map(volume).collect())
    }
}

#[test]
fn names_are_unique() {
    let mut set = Set::new();
    set.add(HostVolume::empty("a").unwrap()).unwrap();
    let again = set.add(HostVolume::from_host("a", "/").unwrap());
    assert!(matches!(again, Err(SetError::Exists(name)) if name == "a"));
    // Either all that a provider has, or nothing.
    assert!(matches!(
        set.add_from(&Image(vec!["b", "a"])),
        Err(SetError::Exists(_))
    ));
    set.add_from(&Image(vec!["b", "c"])).unwrap();
    assert!(
        matches!(set.add_from(&Image(vec!["d"])), Err(SetError::Exists(name)) if name == "image")
    );
    assert!(matches!(set.mounts_of("other"), Err(SetError::NotFound(_))));
    assert!(matches!(set.mounts_of("image"), Err(SetError::NotPrepared)));
    for bad in ["", ".", "..", "a/b", "/a", "a/"] {
        assert!(
            matches!(HostVolume::empty(bad), Err(SetError::Name(_))),
            "{bad}"
        );
    }
}

#[test]
fn an_images_volumes_are_where_its_container_puts_them() {
    let image = GuestImage::new("content:1", "content-1", &["/srv/www", "/etc/"]).unwrap();
    let input: serde_json::Value = serde_json::from_slice(&image.input()).unwrap();
    assert_eq!(
        input,
        json!({"From": "/", "To": "/hostvolumes/content-1", "Volumes": ["/srv/www", "/etc/"]})
    );
    assert_eq!(image.process_args(), ["/hostbin/volume-init"]);
    assert_eq!(
        image.container_mounts(),
        [
            json!({"type": "vm:bind", "source": "/usr/local/bin", "destination": "/hostbin", "options": ["bind", "ro"]}),
            json!({"type": "vm:bind", "source": "/volumes", "destination": "/hostvolumes", "options": ["bind", "rw"]}),
        ]
    );
    let mut set = Set::new();
    set.add_guest(&image).unwrap();
    assert!(matches!(set.add_guest(&image), Err(SetError::Exists(_))));
    assert_eq!(
        set.mounts_of("content:1").unwrap()[0],
        json!({"type": "bind", "source": "/volumes/content-1/srv/www", "destination": "/srv/www", "options": ["bind", "rw"]})
    );

    image.check(0, b"").unwrap();
    let failed = image.check(1, br#"{"Error":"no space"}"#).unwrap_err();
    assert!(chain(&failed).ends_with("status 1: no space"));
    assert!(chain(&image.check(2, b"odd").unwrap_err()).ends_with("status 2: odd"));
    for name in ["", "a/b", "..", "-a", "a--b", "a b"] {
        let bad = GuestImage::new("i", name, &["/a"]);
        assert!(matches!(bad, Err(SetError::Container(_))), "{name}");
    }
    for path in ["", "/", "a", "/a/../b"] {
        let bad = GuestImage::new("i", "c", &[path]);
        assert!(matches!(bad, Err(SetError::VolumePath(_))), "{path}");
    }
}
