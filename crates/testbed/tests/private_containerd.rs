//! The test image and the private containerd, checked with the machine's own
//! runc before any VM is involved.

use std::path::PathBuf;

use fc_test_host::{has_programs, has_root};
use fc_testbed::containerd::{Containerd, Options};
use fc_testbed::image;

#[test]
fn runs_the_test_image_with_runc() {
    let programs = [("containerd", "containerd"), ("runc", "runc")];
    if !has_root("containerd") || !has_programs(&programs) {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let tar = dir.path().join("image.tar");
    image::write(&tar).expect("test image");
    let containerd = Containerd::start(Options {
        dir: dir.path().join("c"),
        prefix: None,
        bin_dir: PathBuf::from("/nonexistent"),
        runtime_config: PathBuf::from("/nonexistent"),
        extra_config: String::new(),
    })
    .expect("containerd starts");
    containerd.import(image::NAME, &tar).expect("import");
    let script = format!(
        "cat /{}; test ! -e /{} && echo merged; exit 7",
        image::SECOND_LAYER_FILE,
        image::DELETED_FILE
    );
    // runc's containers of all containerds share a directory of the host's.
    let id = format!("testbed-{}", std::process::id());
    let output = containerd
        .ctr_output(&["run", "--rm", image::NAME, &id, "/bin/sh", "-c", &script])
        .expect("ctr runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "second\nmerged\n");
}
