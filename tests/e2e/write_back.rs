//! What a container leaves in its snapshot.

use std::fs;
use std::process::Command;

use crate::fixture::{Instance, finish};
use crate::task_api::Tasks;

const WRITE_BACK: &str = "aws.firecracker.disk.write_back=true";

/// Names in what `ctr snapshots diff` shows of the container's snapshot.
fn diff(on: &Instance, id: &str) -> Vec<String> {
    let tar = on.ctr(&["snapshots", "diff", id]).expect(0).stdout;
    let path = on.layout.dir.join(format!("{id}.tar"));
    fs::write(&path, tar).expect("diff");
    let mut list = Command::new("tar");
    // Which compression it has is containerd's choice.
    list.arg("-tf").arg(&path);
    let listed = finish(list).expect(0);
    listed.text().lines().map(str::to_owned).collect()
}

/// Once a container is deleted, or paused, its snapshot holds what it wrote.
pub fn comes_back(on: &Instance) {
    let id = "written";
    let script = "if test -e /added; then cat /added/file; rm -r /added; echo second > /again; exit 0; fi; \
                  mkdir /added; echo first > /added/file; ln /added/file /added/hard; rm /etc/group; \
                  echo more >> /etc/second-layer; mkfifo /added/fifo";
    let options = ["--annotation", WRITE_BACK];
    let run = on.run_command(&options, id, &["/bin/sh", "-c", script]);
    finish(run).expect(0);
    // Without `-d`, ctr has deleted the task.
    let names = diff(on, id);
    for name in [
        "added/file",
        "added/hard",
        "etc/.wh.group",
        "etc/second-layer",
    ] {
        assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("fifo")), "{names:?}");

    // The container again, with what it left: the snapshot shows the sum of both.
    on.ctr(&["task", "start", id]).expect(0);
    let names = diff(on, id);
    assert!(names.iter().any(|name| name == "again"), "{names:?}");
    assert!(
        !names.iter().any(|name| name.starts_with("added")),
        "{names:?}"
    );
    assert!(
        names.iter().any(|name| name == "etc/.wh.group"),
        "{names:?}"
    );
    on.ctr(&["container", "rm", id]).expect(0);

    // A pause brings it back, too.
    let id = "paused-written";
    let sleeps = [
        "/bin/sh",
        "-c",
        "echo x > /before-pause; echo ready; sleep 600",
    ];
    let options = [
        "--annotation",
        WRITE_BACK,
        "--annotation",
        "aws.firecracker.vm.id=written-back",
    ];
    on.run_detached(&options, id, &sleeps);
    on.ctr(&[
        "task",
        "exec",
        "--exec-id",
        "wait",
        id,
        "/bin/sh",
        "-c",
        "until test -s /before-pause; do :; done",
    ])
    .expect(0);
    on.ctr(&["task", "pause", id]).expect(0);
    assert!(diff(on, id).iter().any(|name| name == "before-pause"));
    on.ctr(&["task", "resume", id]).expect(0);

    // What still runs is not deleted, and the snapshot stays as it was.
    on.ctr(&[
        "task",
        "exec",
        "--exec-id",
        "write",
        id,
        "/bin/sh",
        "-c",
        "echo x > /after-pause",
    ])
    .expect(0);
    let error = Tasks::of(on, "written-back").delete(id).unwrap_err();
    assert!(error.to_string().contains("still runs"), "{error}");
    assert!(!diff(on, id).iter().any(|name| name == "after-pause"));
    on.ctr(&["task", "kill", "-s", "SIGKILL", id]).expect(0);
    on.remove(id);
    crate::shared_vm::stop_vm(on, "written-back");
}

/// What nobody asked for is gone with the container; what cannot be is refused.
pub fn nothing_without_it(on: &Instance) {
    let id = "not-written";
    let run = on.run_command(&[], id, &["/bin/sh", "-c", "echo x > /added"]);
    finish(run).expect(0);
    assert_eq!(diff(on, id), [""; 0]);
    on.ctr(&["container", "rm", id]).expect(0);

    // A plain directory has no place for it.
    let options = [
        "--rm",
        "--snapshotter",
        "native",
        "--annotation",
        WRITE_BACK,
    ];
    let refused = finish(on.run_command(&options, "no-place", &["/bin/true"]));
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("aws.firecracker.disk.write_back"),
        "{}",
        refused.stderr
    );
}
