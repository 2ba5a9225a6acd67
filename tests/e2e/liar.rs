//! A guest that goes on writing to a drive that it said it had let go of: nobody's file but the slot's own stub gets
//! that.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::OnInstance;
use crate::fixture::{Instance, finish};
use crate::fs_image;
use crate::shared_vm::stop_vm;
use crate::task_api::{Tasks, mount};

/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] =
    &[("drives::a_drive_let_go_of_is_out_of_reach", out_of_reach)];

const VM: &str = "liar";
/// Slots that are free without the container that writes.
const FREE_SLOTS: usize = 3;

fn out_of_reach(on: &Instance) {
    let annotation = format!("aws.firecracker.vm.id={VM}");
    let options = ["--privileged", "--annotation", &annotation];
    on.run_detached(&options, "liar", &["/bin/sleep", "600"]);
    let dir = on.layout.dir.join(VM);
    let image = dir.join("image");
    fs_image::tree(&dir.join("tree"), "content\n");
    fs_image::make("ext4", &dir.join("tree"), &image);
    let rootfs = [mount("ext4", &image, &["rw"])];
    let tasks = Tasks::of(on, VM);
    let script = ["/bin/sh", "-c", "echo ready; exec sleep 600"];
    let mut owner = tasks.start("owner", &rootfs, &script).expect("Create");
    assert_eq!(owner.line(), "ready\n");

    // Root in the guest has the device itself open. Its size tells which one it is.
    let sectors = image.metadata().expect("the image").len() / 512;
    let script = format!(
        "for d in /sys/class/block/vd*; do test $(cat $d/size) = {sectors} && break; done
         mknod /tmp/drive b $(tr : ' ' <$d/dev) && mkfifo /tmp/go && exec 3<>/tmp/drive || exit 3
         echo open $(cat $d/size); read go </tmp/go
         dd if=/dev/zero bs=512 count=1000 conv=notrunc,fsync >&3 2>/dev/null && exit 4
         dd if=/tmp/drive bs=512 count=1 2>/dev/null | tr -d '\\0' | wc -c; cat $d/size"
    );
    let exec = |id, script| {
        let mut exec = on.containerd.ctr();
        exec.args(["task", "exec", "--exec-id", id, "liar"]);
        exec.args(["/bin/sh", "-c", script]);
        exec
    };
    let mut writer = exec("write", script.as_str());
    let mut writer = writer.stdout(Stdio::piped()).spawn().expect("ctr");
    let mut output = BufReader::new(writer.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("the writer says open");
    assert_eq!(line, format!("open {sectors}\n"));

    tasks.kill(&owner, 9);
    tasks.end(owner);
    fs_image::check("ext4", &image);
    let before = fs_image::sha256(&image);
    finish(exec("go", "echo >/tmp/go")).expect(0);
    let mut said = String::new();
    output.read_to_string(&mut said).expect("the rest");
    let ended = writer.wait().expect("ctr");
    assert!(ended.success(), "all of it was written: {ended}, {said}");
    // One sector is there to be written to, the stub's, and now it is empty.
    assert_eq!(said, "0\n1\n");
    assert_eq!(fs_image::sha256(&image), before);

    // The VM has harmed nothing that it needs: each slot serves, that one last.
    for round in 0..FREE_SLOTS {
        let text = tasks.sh(&format!("round-{round}"), &rootfs, "cat /hello");
        assert_eq!(text, "content\n");
    }
    fs_image::check("ext4", &image);
    on.remove("liar");
    stop_vm(on, VM);
}
