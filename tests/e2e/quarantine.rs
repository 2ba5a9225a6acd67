//! A guest that does not let go of a drive: its slot is put aside, and comes back when the cause is gone.

use fc_proto::ttrpc::Code;
use serde_json::Value;

use crate::OnSetup;
use crate::ctl::Ctl;
use crate::daemon::failed;
use crate::fixture::{Flavor, Instance, Setup, eventually};
use crate::fs_image;
use crate::shared_vm::stop_vm;
use crate::task_api::{Tasks, mount};

/// With an instance of its own, for `firecracker-ctl`.
pub const OWN: &[(&str, OnSetup)] = &[("drives::a_busy_drive_is_put_aside", put_aside)];

const VM: &str = "busy";

/// One container's mounts are bound into another one, which keeps them in its own mount namespace when the first ends.
fn put_aside(setup: &Setup, flavor: &Flavor) {
    let on = &Instance::start(setup, flavor);
    let annotation = format!("aws.firecracker.vm.id={VM}");
    let in_vm = ["--annotation", &annotation];
    on.run_detached(&in_vm, "keeper", &["/bin/sleep", "600"]);
    let dir = on.layout.dir.join(VM);
    let image = dir.join("image");
    fs_image::tree(&dir.join("tree"), "content");
    fs_image::make("ext4", &dir.join("tree"), &image);
    let rootfs = [mount("ext4", &image, &["rw"])];
    let tasks = Tasks::of(on, VM);
    let script = [
        "/bin/sh",
        "-c",
        "echo kept >/new; echo ready; exec sleep 600",
    ];
    let mut owner = tasks.start("owner", &rootfs, &script).expect("Create");
    assert_eq!(owner.line(), "ready\n");
    let containers = "type=vm:bind,src=/container,dst=/containers,options=rbind:ro";
    let options = [&in_vm[..], &["--mount", containers]].concat();
    let keeps = [
        "/bin/sh",
        "-c",
        "cd /containers/owner/rootfs && exec sleep 600",
    ];
    on.run_detached(&options, "holder", &keeps);
    let exec = ["task", "exec", "--exec-id", "look", "holder"];
    // By then it is the program by whose name it is to be found.
    let look =
        "until test $(cat /proc/1/comm) = sleep; do :; done; cat /containers/owner/rootfs/new";
    let look = on.ctr(&[&exec[..], &["/bin/sh", "-c", look]].concat());
    assert_eq!(look.expect(0).text(), "kept\n");

    // Deleted it is; its drive stays.
    tasks.kill(&owner, 9);
    tasks.end(owner);
    let ctl = Ctl { setup, on };
    let slot = slot_of(&ctl, "owner").expect("a slot that is put aside");
    assert_eq!(slot["state"], "quarantined", "{slot}");
    let problem = slot["problem"].as_str().expect("a reason");
    for part in ["still in use by process", "(sleep)", "holder"] {
        assert!(problem.contains(part), "{part}: {problem}");
    }
    let text = ctl.run(&["vm", "info", VM]).expect(0).text();
    assert!(
        text.contains("quarantined") && text.contains(problem),
        "{text}"
    );
    let doctor = ctl.run(&["doctor"]).text();
    assert!(doctor.contains("is quarantined"), "{doctor}");

    // Nor is its file anybody else's: that can be had later.
    let (code, text) = failed(tasks.start("thief", &rootfs, &["/bin/true"]));
    assert_eq!(code, Code::FAILED_PRECONDITION, "{text}");
    let in_use = format!("{} is in use: another VM", image.display());
    assert!(text.contains(&in_use), "{text}");

    // It is nobody else's, though the one of all that is free longest would be next.
    on.run_detached(&in_vm, "other", &["/bin/sleep", "600"]);
    let others = slot_of(&ctl, "other").expect("a slot of its own");
    assert_ne!(others["id"], slot["id"]);
    let still = slot_of(&ctl, "owner").expect("it is tried again, in vain");
    assert_eq!(still["state"], "quarantined");

    // The release of the one who kept it frees it, too; or the next one, where the guest takes its time to end mounts.
    on.remove("holder");
    let is_back = eventually(|| {
        let back = slot_of(&ctl, "owner").is_none();
        if !back {
            on.run(&in_vm, "next", &["/bin/true"]).expect(0);
        }
        back
    });
    assert!(is_back, "{:?}", slot_of(&ctl, "owner"));
    fs_image::check("ext4", &image);
    assert_eq!(fs_image::read_ext4(&image, "/new"), b"kept\n");
    let again = tasks.sh("owner", &rootfs, "cat /new");
    assert_eq!(again, "kept\n");
    for id in ["other", "keeper"] {
        on.remove(id);
    }
    stop_vm(on, VM);
}

/// What `vm info` shows of the container's slot.
fn slot_of(ctl: &Ctl, owner: &str) -> Option<Value> {
    let info = ctl.json(&["vm", "info", VM]);
    let mut slots = info["drives"].as_array().expect("drives").iter();
    slots.find(|slot| slot["owner"] == owner).cloned()
}
