use super::*;

fn mount(fstype: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        fstype: fstype.into(),
        source: source.into(),
        target: String::new(),
        options: options.iter().map(|option| (*option).into()).collect(),
    }
}

fn refused(mounts: &[Mount]) -> String {
    plan(mounts).unwrap_err().to_string()
}

#[test]
fn an_image_file_keeps_type_and_options_but_not_loop() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let Plan::Device(device) = plan(&[mount("xfs", path, &["loop", "rw", "nouuid"])]).unwrap()
    else {
        panic!("not a device");
    };
    assert_eq!(device.source, file.path());
    assert_eq!(device.fstype, "xfs");
    assert_eq!(device.options, ["rw", "nouuid"]);
    assert!(!device.read_only);
}

#[test]
fn read_only_is_an_option_or_the_filesystem_s_nature() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for given in [
        mount("ext4", path, &["ro", "loop"]),
        mount("ext4", path, &["noatime,ro,loop"]),
        mount("erofs", path, &["rw"]),
    ] {
        let Plan::Device(device) = plan(&[given]).unwrap() else {
            panic!("not a device");
        };
        assert!(device.read_only);
        let odd = |option: &String| option == "rw" || option.contains("loop");
        assert!(!device.options.iter().any(odd), "{:?}", device.options);
    }
}

#[test]
fn an_overlay_s_layers_keep_their_order_and_odd_names() {
    let dir = tempfile::tempdir().unwrap();
    let lower: Vec<_> = ["a:b", "c,d", "e\\f"]
        .map(|name| dir.path().join(name))
        .into();
    for path in lower.iter().chain([&dir.path().join("upper")]) {
        fs::create_dir(path).unwrap();
    }
    let lowerdir: Vec<_> = lower
        .iter()
        .map(|path| {
            path.to_str()
                .unwrap()
                .replace('\\', "\\\\")
                .replace(':', "\\:")
        })
        .collect();
    let options = [
        "index=off".to_owned(),
        format!("lowerdir={}", lowerdir.join(":")),
        format!("upperdir={}/upper", dir.path().display()),
        format!("workdir={}/work", dir.path().display()),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let Plan::Layers { layers, writable } = plan(&[mount("overlay", "overlay", &options)]).unwrap()
    else {
        panic!("not layers");
    };
    assert_eq!(
        layers.layers,
        lower
            .clone()
            .into_iter()
            .map(Layer::Directory)
            .collect::<Vec<_>>()
    );
    assert!(layers.immutable && writable == Writable::EmptyDisk);

    fs::write(dir.path().join("upper/file"), "x").unwrap();
    let upper = dir.path().join("upper");
    let of = |options: &[&str]| match plan(&[mount("overlay", "overlay", options)]).unwrap() {
        Plan::Layers { layers, writable } => (layers, writable),
        other => panic!("{other:?}"),
    };
    let (layers, writable) = of(&options);
    assert_eq!(writable, Writable::DiskWith(upper.clone()));
    assert!(layers.immutable && layers.layers.len() == lower.len());
    assert_eq!(
        upper_dir(&[mount("overlay", "overlay", &options)]),
        Some(upper.clone())
    );
    // Nothing can be written, or the disk would be read in another way: part of the image then.
    for (option, expected) in [("ro", Writable::No), ("userxattr", Writable::EmptyDisk)] {
        let options = [&options[..], &[option]].concat();
        let (layers, writable) = of(&options);
        assert_eq!(writable, expected);
        assert_eq!(layers.layers[0], Layer::Directory(upper.clone()));
        assert!(!layers.immutable);
        assert_eq!(upper_dir(&[mount("overlay", "overlay", &options)]), None);
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let image = file.path().to_str().unwrap();
    assert!(refused(&[]).contains("no rootfs mount"));
    let two = [mount("erofs", image, &[]), mount("overlay", "overlay", &[])];
    assert!(refused(&two).contains("no lowerdir"));
    let two = [
        mount("erofs", image, &[]),
        mount("overlay", "overlay", &["lowerdir={{ mount 0 }}"]),
    ];
    assert!(refused(&two).contains("{{ mount 0 }}"));
    let template = mount("format/mkdir/overlay", "overlay", &[]);
    assert!(refused(&[template]).contains("format/mkdir/overlay"));
    assert!(refused(&[mount("ext4", path, &[])]).contains("neither a block device"));
    assert!(refused(&[mount("ext4", image, &["offset=512"])]).contains("offset=512"));
    for (fstype, source) in [("fuse3.x", path), ("fuse3.x", "overlay"), ("zfs", "pool/1")] {
        let text = refused(&[mount(fstype, source, &[])]);
        assert!(text.contains(fstype) && text.contains(source), "{text}");
    }
    assert!(refused(&[mount("bind", path, &["uidmap=0:1:2"])]).contains("uidmap=0:1:2"));
    assert!(refused(&[mount("bind", image, &[])]).contains("no directory"));
    assert!(refused(&[mount("overlay", "overlay", &[])]).contains("no lowerdir"));
    let secret = format!("lowerdir={path}::{path}");
    assert!(refused(&[mount("overlay", "overlay", &[&secret])]).contains("::"));
    let relative = refused(&[mount("overlay", "overlay", &["lowerdir=a:b"])]);
    assert!(relative.contains("no absolute path"), "{relative}");
    let mut inside = mount("bind", path, &[]);
    inside.target = "/data".into();
    assert!(refused(&[inside]).contains("/data"));
}

#[test]
fn of_several_mounts_the_last_at_the_rootfs_says_what_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let image = file.path().to_str().unwrap();
    let at = |target: &str, mount: Mount| Mount {
        target: target.into(),
        ..mount
    };
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    fs::write(upper.join("file"), "x").unwrap();
    let overlay = [
        format!("lowerdir={path}"),
        format!("upperdir={}", upper.display()),
    ];
    let overlay = overlay.each_ref().map(String::as_str);
    let ro = || mount("bind", path, &["rbind", "ro"]);
    for (mounts, expected) in [
        (
            vec![ro(), at("/", mount("ext4", image, &["loop"]))],
            Writable::EmptyDisk,
        ),
        (vec![mount("bind", path, &["rbind"]), ro()], Writable::No),
        (
            vec![ro(), at("data", mount("bind", path, &["rbind"]))],
            Writable::No,
        ),
        (
            vec![mount("overlay", "overlay", &overlay), at("data", ro())],
            Writable::EmptyDisk,
        ),
    ] {
        let Plan::Several { parts, writable } = plan(&mounts).unwrap() else {
            panic!("not several");
        };
        assert_eq!(parts.len(), 2);
        assert_eq!(writable, expected, "{mounts:?}");
        assert_eq!(upper_dir(&mounts), None);
        if mounts[0].fstype == "overlay" {
            assert_eq!(
                parts[0].layers.layers,
                [
                    Layer::Directory(upper.clone()),
                    Layer::Directory(path.into())
                ]
            );
        }
    }
}
