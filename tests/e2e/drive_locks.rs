//! A file that one VM writes to is nobody else's until that VM lets go of it, however it ends.

use std::process::Command;

use fc_proto::ttrpc::Code;
use rustix::process::{Pid, Signal, kill_process};

use crate::OnSetup;
use crate::daemon::{BOUND, failed};
use crate::drives::{mount, status};
use crate::drives_vm::{Controlled, vm};
use crate::fixture::{Flavor, Setup, finish};
use crate::fs_image;

/// With an instance and a daemon of their own.
pub const OWN: &[(&str, OnSetup)] = &[("drives::a_file_has_one_writer", one_writer)];

fn one_writer(setup: &Setup, flavor: &Flavor) {
    let controlled = Controlled::start(setup, flavor);
    let dir = setup.fresh_dir();
    let (tree, data, shared) = (dir.join("tree"), dir.join("data"), dir.join("shared"));
    fs_image::tree(&tree, "content");
    fs_image::make("ext4", &tree, &data);
    fs_image::make("erofs", &tree, &shared);
    let reads = mount(&shared, "/vmv/shared", "erofs", false);
    let writes = mount(&data, "/vmv/data", "ext4", true);
    let both = vec![reads.clone(), writes.clone()];
    controlled
        .create(&vm("first", both.clone()))
        .expect("CreateVM");
    let dirs = controlled.on.vm_dirs();

    // People are told where the file is, not how the VMM gets it.
    let status = status(&controlled.on, "first");
    let slot = status
        .slots
        .iter()
        .find(|slot| slot.host_path == data.display().to_string());
    assert!(slot.is_some(), "{status:?}");

    let reading = mount(&data, "/vmv/data", "ext4", false);
    for (wanted, reason) in [(writes, "reads or writes it"), (reading, "writes to it")] {
        let answer = controlled.create(&vm("second", vec![reads.clone(), wanted]));
        let (code, error) = failed(answer);
        assert_eq!(code, Code::FAILED_PRECONDITION, "{error}");
        let data = data.display().to_string();
        for part in [
            "DriveMounts[1].HostPath",
            &data,
            "is in use: another VM or container",
            reason,
        ] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
        assert_eq!(controlled.on.vm_dirs(), dirs, "nothing stays");
    }
    // A container's volume is no way around it.
    let volume = format!("type=ext4,src={},dst=/data,options=rw", data.display());
    let in_first = "aws.firecracker.vm.id=first";
    let options = ["--annotation", in_first, "--mount", &volume];
    let refused = controlled.on.run(&options, "thief", &["/bin/true"]);
    let error = refused.stderr;
    assert!(
        error.contains("is in use: another VM or container"),
        "{error}"
    );

    // What held the lock is killed: only the kernel can give it up.
    let shim = i32::try_from(status.shim_pid).ok().and_then(Pid::from_raw);
    kill_process(shim.expect("a pid"), Signal::KILL).expect("kill");
    let mut flock = Command::new("flock");
    let bound = BOUND.as_secs().to_string();
    flock.args(["--wait", &bound]).arg(&data).arg("true");
    finish(flock).expect(0);
    controlled.create(&vm("second", both)).expect("CreateVM");
    controlled.stop("second");
    // StopVM's answer means that the files are anybody's again.
    for free in [&data, &shared] {
        let mut flock = Command::new("flock");
        flock.arg("--nonblock").arg(free).arg("true");
        finish(flock).expect(0);
    }
    fs_image::check("ext4", &data);
}
