//! However a jailed VM ends: nothing of it stays on the host.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use fc_testbed::leftovers::wait_for_end;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::traces::assert_gone;
use super::{NAMESPACE, configure, image, template, unique, user};
use crate::ctl::Ctl;
use crate::daemon::{BOUND, Daemon, PATIENCE};
use crate::fixture::{Flavor, Instance, Setup, finish};
use crate::lifecycle::expect_gone;

pub fn bind(setup: &Setup, flavor: &Flavor) {
    matrix(setup, flavor, "bind");
}

pub fn copy(setup: &Setup, flavor: &Flavor) {
    matrix(setup, flavor, "copy");
}

/// What ends a VM, and whether a container runs in it.
type End = (&'static str, bool, fn(&Host, &Vm));

const ENDS: &[End] = &[
    ("stopped", true, |host, vm| {
        let patience = PATIENCE.to_string();
        let stop = ["vm", "stop", &vm.id, "--timeout", &patience];
        host.ctl().run(&stop).expect(0);
        host.on.remove(&vm.id);
    }),
    ("stopped-by-force", true, |host, vm| {
        // A paused guest cannot end by itself.
        host.ctl().run(&["vm", "pause", &vm.id]).expect(0);
        let stop = ["vm", "stop", &vm.id, "--timeout", "1"];
        let stopped = host.ctl().run(&stop);
        let text = stopped.stderr.to_lowercase();
        assert!(text.contains("forcefully terminated vm"), "{text}");
        host.on.remove(&vm.id);
    }),
    ("vmm-killed", true, |host, vm| {
        kill(vm.vmm);
        host.on.remove(&vm.id);
        wait_for_end(vm.shim, BOUND);
    }),
    ("container-killed", true, |host, vm| {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(vm.dir.join("runc"));
        runc.args(["kill", &vm.id, "KILL"]);
        finish(runc).expect(0);
        host.on.remove(&vm.id);
        wait_for_end(vm.shim, BOUND);
    }),
    // containerd runs `delete` for the shim of a task that broke its connection.
    ("shim-killed-delete", true, |host, vm| {
        kill(vm.shim);
        expect_gone(&host.on);
        host.on.remove(&vm.id);
    }),
    // Without a task containerd knows nothing of the VM.
    ("shim-killed-gc", false, |host, vm| {
        kill(vm.shim);
        wait_for_end(vm.shim, BOUND);
        assert!(vm.dir.exists(), "nobody has cleaned up");
        let collected = host.ctl().json(&["gc"]);
        assert_eq!(collected[0]["removed"], true, "{collected}");
    }),
    ("shim-killed-daemon", false, |host, vm| {
        kill(vm.shim);
        wait_for_end(vm.shim, BOUND);
        assert!(vm.dir.exists(), "nobody has cleaned up");
        let _daemon = Daemon::start(host.setup, &host.on);
        expect_gone(&host.on);
    }),
];

fn matrix(setup: &Setup, flavor: &Flavor, policy: &'static str) {
    let host = Host::new(setup, flavor, policy);
    for (name, with_container, end) in ENDS {
        let vm = host.start(name, *with_container);
        let begin = Instant::now();
        end(&host, &vm);
        println!("{policy}, {name}: ended after {:?}", begin.elapsed());
        host.assert_gone(&vm.id);
        assert_no_process_in(&vm.network);
    }
    host.killed_runtimes();
}

/// A jailed VM and what it has.
struct Vm {
    id: String,
    dir: PathBuf,
    vmm: i32,
    shim: i32,
    /// Its network namespace. Open, it keeps its number, which another one would get soon.
    network: fs::File,
}

/// A machine without a daemon, and the files that its VMs get.
struct Host<'a> {
    setup: &'a Setup,
    on: Instance,
    policy: &'static str,
    /// When it is there, the runtime is killed so many seconds after its start.
    deadline: PathBuf,
    image: PathBuf,
    device: LoopDevice,
}

impl<'a> Host<'a> {
    fn new(setup: &'a Setup, flavor: &Flavor, policy: &'static str) -> Self {
        let dir = setup.fresh_dir();
        let (runc, deadline) = (dir.join("runc"), dir.join("deadline"));
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *' run '*) test ! -e {0} || exec timeout -s KILL $(cat {0}) runc \"$@\";; esac\n\
             exec runc \"$@\"\n",
            deadline.display()
        );
        fs::write(&runc, script).expect("a script");
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755)).expect("a mode");
        let on = Instance::with_config(setup, flavor, |config| {
            configure(config, setup, &runc, &template());
        });
        Self {
            setup,
            on,
            policy,
            deadline,
            image: image(&dir, "image"),
            device: LoopDevice::new(&image(&dir, "device")),
        }
    }

    fn ctl(&self) -> Ctl<'_> {
        Ctl {
            setup: self.setup,
            on: &self.on,
        }
    }

    fn user(&self) -> u32 {
        user(if self.policy == "bind" { 7 } else { 8 })
    }

    /// The arguments that create a VM with a file and a block device.
    fn create(&self, id: &str) -> Vec<String> {
        let user = self.user();
        let patience = PATIENCE.to_string();
        let mut args = vec!["vm", "create", id, "--timeout", &patience];
        let jail = format!("{user}:{user}");
        let file = format!("host={},vm=/vmv/data,type=ext4,rw", self.image.display());
        let device = format!("host={},vm=/vmv/block,type=ext4,rw", self.device.0);
        args.extend(["--jail", &jail, "--mount", &file, "--mount", &device]);
        if self.policy == "bind" {
            args.push("--jail-bind");
        }
        args.into_iter().map(str::to_owned).collect()
    }

    fn start(&self, name: &str, with_container: bool) -> Vm {
        let id = unique(&format!("{}-{name}", self.policy));
        let args = self.create(&id);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.ctl().json(&args);
        if with_container {
            let annotation = format!("aws.firecracker.vm.id={id}");
            let options = ["--annotation", &annotation];
            self.on.run_detached(&options, &id, &["/bin/sleep", "600"]);
        }
        let info = self.ctl().json(&["vm", "info", &id]);
        let number = |value: &Value| value.as_i64().and_then(|pid| i32::try_from(pid).ok());
        let dir = self.on.layout.shim_base().join(format!("{NAMESPACE}#{id}"));
        let nodes = fs::read_dir(dir.join("drives")).expect("a jail").flatten();
        let mut types = nodes.filter_map(|node| node.file_type().ok());
        assert!(
            types.any(|kind| kind.is_block_device()),
            "there is a device to be removed"
        );
        let vmm = number(&info["vmm_pid"]).expect("a VMM");
        Vm {
            vmm,
            shim: number(&info["shim_pid"]).expect("a shim"),
            network: fs::File::open(format!("/proc/{vmm}/ns/net")).expect("a process"),
            id,
            dir,
        }
    }

    /// Nothing of the VM is there, and its files are as they were.
    fn assert_gone(&self, id: &str) {
        let cgroup = format!("/firecracker-containerd/{id}");
        assert_gone(&self.on, &cgroup, self.user());
        let metadata = self.image.metadata().expect("the image");
        let owner = (metadata.uid(), metadata.gid(), metadata.mode() & 0o777);
        assert_eq!(owner, (0, 0, 0o600));
        self.device.assert_free();
    }

    /// The runtime is killed at moments spread over the start of a container. It may have been fast enough.
    fn killed_runtimes(&self) {
        for seconds in ["0.002", "0.010", "0.020", "0.040", "0.080"] {
            fs::write(&self.deadline, seconds).expect("a file");
            let id = unique(&format!("{}-runc-killed", self.policy));
            let args = self.create(&id);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let created = self.ctl().run(&args);
            println!("runc killed after {seconds} s: {}", created.stderr.trim());
            if created.code == 0 {
                self.ctl().run(&["vm", "stop", &id]).expect(0);
            }
            self.assert_gone(&id);
        }
    }
}

/// A block device with an image in it.
struct LoopDevice(String);

impl LoopDevice {
    fn new(image: &Path) -> Self {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).arg(image);
        Self(finish(losetup).expect(0).text().trim().to_owned())
    }

    /// Fails if anybody has it open or mounted.
    fn assert_free(&self) {
        use rustix::fs::{Mode, OFlags, open};
        let exclusively = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
        open(&self.0, exclusively, Mode::empty()).expect("nobody uses it");
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // As good as it gets, after a test that failed.
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

fn kill(pid: i32) {
    let pid = Pid::from_raw(pid).expect("a pid");
    kill_process(pid, Signal::KILL).expect("a signal");
}

/// A network namespace goes when no process is in it, none is mounted, and we close it.
#[track_caller]
fn assert_no_process_in(network: &fs::File) {
    let network = network.metadata().expect("a namespace").ino();
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let mut networks = processes.filter_map(|it| fs::metadata(it.path().join("ns/net")).ok());
    assert!(!networks.any(|it| it.ino() == network), "{network} stays");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&format!("net:[{network}]")), "{mounts}");
}
