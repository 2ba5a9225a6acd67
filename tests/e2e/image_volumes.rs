//! What an image declares as its volumes, on a drive that containers of another image share.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use fc_image_volume::{Containerd, ImageVolumes, Options};
use fc_testbed::image;
use fc_volume::Set;
use serde_json::{Value, json};

use crate::OnSetup;
use crate::daemon::calls;
use crate::drives_vm::{Controlled, vm};
use crate::fixture::{Flavor, Instance, Setup, finish};

/// Run with the machine's containerd, and instances of their own.
pub const OWN: &[(&str, OnSetup)] = &[("image_volumes::are_a_drive_mount", drive_mount)];

const IMAGE: &str = "localhost/content:1";

fn drive_mount(setup: &Setup, flavor: &Flavor) {
    let controlled = Controlled::start(setup, flavor);
    let on = &controlled.on;
    import(on);
    let work = setup.fresh_dir();
    let options = Options::default().directory(&work);
    let (drive, mounts) = calls(async {
        let socket = on.containerd.socket();
        let containerd = Containerd::connect(&socket, "default").await;
        let mut volumes = ImageVolumes::from_image(&containerd.expect("connects"), IMAGE, &options)
            .await
            .expect("the image's volumes");
        let mut set = Set::in_directory(&work);
        set.add_from(&volumes).expect("an empty set");
        let drive = set.prepare_drive_mount(16 << 20).expect("a drive");
        volumes.delete().await.expect("nothing keeps the view");
        (drive, set.mounts_of(IMAGE).expect("prepared"))
    });
    let left = on.ctr(&["snapshots", "ls"]).expect(0).text();
    assert!(!left.contains("image-volumes-"), "{left}");

    controlled
        .create(&vm("content", vec![drive.drive_mount()]))
        .expect("CreateVM");
    let mounts: Vec<String> = mounts.iter().map(mount).collect();
    let mut options = vec!["--annotation", "aws.firecracker.vm.id=content"];
    for mount in &mounts {
        options.extend(["--mount", mount]);
    }
    let script =
        "cat /srv/www/index; stat -c '%a %u:%g' /srv/www/index; ls /spool; echo kept > /spool/new";
    let done = on.run(&options, "writer", &["/bin/sh", "-c", script]);
    assert_eq!(done.expect(0).text(), "hello\n640 7:8\n");
    let done = on.run(&options, "reader", &["/bin/cat", "/spool/new"]);
    assert_eq!(done.expect(0).text(), "kept\n");
    controlled.stop("content");
}

/// Imports an image with a volume that has a file, and one that the image has no directory for.
fn import(on: &Instance) {
    let dir = on.layout.dir.join("content");
    let www = dir.join("srv/www");
    fs::create_dir_all(&www).expect("test directory");
    let index = www.join("index");
    fs::write(&index, "hello\n").expect("test file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    fs::set_permissions(&index, mode).expect("test file");
    chown(&index, Some(7), Some(8)).expect("test file");
    let mut tar = Command::new("tar");
    tar.args(["-c", "--numeric-owner", "."]).current_dir(&dir);
    let layer = finish(tar).expect(0).stdout;
    let config = json!({"Volumes": {"/srv/www": {}, "/spool": {}}});
    let archive = image::archive(IMAGE, &config, &[layer]).expect("an archive");
    let file = on.layout.dir.join("content.tar");
    fs::write(&file, archive).expect("an archive");
    on.containerd.import(IMAGE, &file).expect("import");
}

/// The argument of `ctr run --mount` for a mount of an OCI configuration.
fn mount(mount: &Value) -> String {
    let text = |key: &str| mount[key].as_str().expect("a text");
    let options = mount["options"].as_array().expect("a list");
    let options: Vec<&str> = options.iter().filter_map(Value::as_str).collect();
    format!(
        "type={},src={},dst={},options={}",
        text("type"),
        text("source"),
        text("destination"),
        options.join(":")
    )
}
