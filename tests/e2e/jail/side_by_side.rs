//! Five VMs at once, with the two ways of showing drives to a jail, and without a jail.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use fc_proto::control::{
    CreateVMRequest, DriveExposePolicy, FirecrackerBalloonDevice, FirecrackerMachineConfiguration,
};
use fc_proto::protobuf::MessageField;

use super::traces::{
    assert_gone, cgroups, network, network_of, processes, setting, shown, threads,
};
use super::{NAMESPACE, created, daemon, drive, image, jailed, template, unique, user};
use crate::daemon::{create, ctx, info, of};
use crate::drives_vm::Controlled;
use crate::fixture::{Flavor, Setup, finish};

/// One of the five.
struct Vm {
    id: String,
    number: u32,
    /// `None` without a jail.
    policy: Option<DriveExposePolicy>,
    /// A drive mount that it may write.
    data: PathBuf,
    /// One that it may not write.
    fixed: PathBuf,
}

impl Vm {
    fn new(dir: &Path, number: u32, policy: Option<DriveExposePolicy>) -> Self {
        Self {
            id: unique(&format!("five-{number}")),
            number,
            policy,
            data: image(dir, &format!("data-{number}")),
            fixed: image(dir, &format!("fixed-{number}")),
        }
    }

    /// The processor that a jail allows: the first and the last one in turn.
    fn cpus(&self) -> String {
        let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
        if self.number.is_multiple_of(2) {
            "0".to_owned()
        } else {
            last.to_string()
        }
    }

    fn request(&self) -> CreateVMRequest {
        let mut request = match self.policy {
            Some(policy) => jailed(&self.id, self.number, policy),
            None => create(&self.id),
        };
        if let Some(jail) = request.JailerConfig.as_mut() {
            jail.CPUs = self.cpus();
            jail.Mems = "0".to_owned();
        }
        CreateVMRequest {
            DriveMounts: vec![
                drive(&self.data, "/vmv/data", true),
                drive(&self.fixed, "/vmv/fixed", false),
            ],
            // One slot, so that the second container gets the first one's.
            ContainerCount: 1,
            MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
                VcpuCount: 2,
                MemSizeMib: 160,
                ..FirecrackerMachineConfiguration::default()
            }),
            BalloonDevice: MessageField::some(FirecrackerBalloonDevice {
                AmountMib: 4,
                DeflateOnOom: true,
                ..FirecrackerBalloonDevice::default()
            }),
            ..request
        }
    }

    /// Runs a container that reads and writes its VM's drive mounts and its own disk. As root of the guest, with
    /// all capabilities, it tries to write to the drive that is read-only.
    fn container(&self, on: &Controlled) {
        let annotation = format!("aws.firecracker.vm.id={}", self.id);
        let options = [
            "--privileged",
            "--annotation",
            &annotation,
            "--mount",
            "type=bind,src=/vmv/data,dst=/data,options=rbind:rw",
            "--mount",
            "type=bind,src=/vmv/fixed,dst=/fixed,options=rbind:rw",
        ];
        let script = "test ! -e /own || exit 3; cat /etc/second-layer /data/hello /fixed/hello; \
             mount -o remount,rw /fixed 2>/dev/null; touch /fixed/new 2>/dev/null && exit 4; \
             echo own > /own && echo written >> /data/new && sync && cat /own";
        let done = on
            .on
            .run(&options, &self.id, &["/bin/sh", "-c", script])
            .expect(0);
        let number = self.number;
        assert_eq!(
            done.text(),
            format!("second\ndata-{number}\nfixed-{number}\nown\n")
        );
    }

    fn dir(&self, on: &Controlled) -> PathBuf {
        on.on
            .layout
            .shim_base()
            .join(format!("{NAMESPACE}#{}", self.id))
    }

    /// Creates the VM; returns its cgroup.
    fn create(&self, on: &Controlled) -> String {
        let begin = Instant::now();
        let created = created(on, NAMESPACE, &self.request()).expect("CreateVM");
        println!("CreateVM of {}: {:?}", self.id, begin.elapsed());
        let shown = on.call(async |vm| vm.get_vm_info(ctx(NAMESPACE), &info(&self.id)).await);
        assert_eq!(shown.expect("GetVMInfo").CgroupPath, created.CgroupPath);
        created.CgroupPath
    }

    /// Its processes are another user's, on the processors and memory that were asked for, without a network.
    fn assert_jailed(&self, cgroup: &str) {
        assert_eq!(cgroup, format!("/firecracker-containerd/{}", self.id));
        assert!(!cgroups(cgroup).is_empty(), "a user can find it");
        assert_eq!(setting(cgroup, "cpuset.cpus"), self.cpus());
        assert_eq!(setting(cgroup, "cpuset.mems"), "0");
        let user = vec![user(self.number).to_string(); 4].join("\t");
        let threads = threads(cgroup);
        assert!(threads.len() > 2, "two of them are vCPUs");
        for thread in threads {
            assert_eq!(thread.cgroup(), cgroup);
            assert_eq!(thread.status("Uid:"), user);
            assert_eq!(thread.status("Gid:"), user);
            assert_eq!(thread.status("Cpus_allowed_list:"), self.cpus());
            assert_eq!(thread.status("Mems_allowed_list:"), "0");
            assert_eq!(thread.status("NoNewPrivs:"), "1");
            assert_eq!(thread.status("CapBnd:"), "0000000000000000");
        }
        assert_ne!(network(cgroup), network_of("self"), "the host's");
        assert_eq!(interfaces(processes(cgroup)[0]), ["lo"]);
    }

    /// Containers and the balloon, at whatever the others do; the slot is used twice.
    fn use_it(&self, on: &Controlled) {
        let before = self.policy.map(|_| shown(&self.dir(on)));
        self.container(on);
        self.container(on);
        let after = self.policy.map(|_| shown(&self.dir(on)));
        assert_eq!(after, before, "what the containers had is out of sight");
        on.call(async |client| {
            let mut update = of::<fc_proto::control::UpdateBalloonRequest>(&self.id);
            update.AmountMib = 8;
            let updated = client.update_balloon(ctx(NAMESPACE), &update).await;
            updated.expect("UpdateBalloon");
            let config = client
                .get_balloon_config(ctx(NAMESPACE), &of(&self.id))
                .await;
            assert_eq!(config.expect("GetBalloonConfig").BalloonConfig.AmountMib, 8);
        });
    }

    /// The host's files after the VM's end: with COPY what the guest wrote went with it.
    fn assert_written(&self) {
        let mut debugfs = Command::new("debugfs");
        debugfs.args(["-R", "cat /new"]).arg(&self.data);
        let expected = match self.policy {
            Some(DriveExposePolicy::COPY) => "",
            _ => "written\nwritten\n",
        };
        assert_eq!(finish(debugfs).expect(0).text(), expected, "{}", self.id);
        for image in [&self.data, &self.fixed] {
            let metadata = image.metadata().expect("the image");
            assert_eq!(
                (metadata.uid(), metadata.gid(), metadata.mode() & 0o777),
                (0, 0, 0o600)
            );
        }
    }
}

/// A process' network interfaces, but for those that some kernels put into every namespace.
fn interfaces(pid: u32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/net/dev")).expect("a process");
    let names = table
        .lines()
        .skip(2)
        .filter_map(|line| line.split(':').next());
    let fallbacks = ["tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip6tnl0"];
    names
        .map(|name| name.trim().to_owned())
        .filter(|name| !fallbacks.contains(&name.as_str()))
        .collect()
}

pub fn five(setup: &Setup, flavor: &Flavor) {
    use DriveExposePolicy::{BIND, COPY};
    let on = daemon(setup, flavor, &template());
    let dir = setup.fresh_dir();
    let policies = [Some(BIND), Some(COPY), None, Some(BIND), Some(COPY)];
    let vms: Vec<Vm> = policies
        .into_iter()
        .zip(0..)
        .map(|(policy, number)| Vm::new(&dir, number, policy))
        .collect();
    let fixed: Vec<Vec<u8>> = vms
        .iter()
        .map(|vm| fs::read(&vm.fixed).expect("it"))
        .collect();
    let at_once = |what: &(dyn Fn(&Vm) + Sync)| {
        std::thread::scope(|scope| {
            for vm in &vms {
                scope.spawn(|| what(vm));
            }
        });
    };
    at_once(&|vm| {
        let cgroup = vm.create(&on);
        match vm.policy {
            Some(_) => vm.assert_jailed(&cgroup),
            None => assert_eq!(cgroup, ""),
        }
    });
    let mut networks: Vec<PathBuf> = vms
        .iter()
        .filter(|vm| vm.policy.is_some())
        .map(|vm| network(&format!("/firecracker-containerd/{}", vm.id)))
        .collect();
    networks.sort();
    networks.dedup();
    assert_eq!(networks.len(), 4, "each has a network of its own");
    at_once(&|vm| vm.use_it(&on));
    at_once(&|vm| on.stop(&vm.id));
    for (vm, fixed) in vms.iter().zip(fixed) {
        let cgroup = format!("/firecracker-containerd/{}", vm.id);
        assert_gone(&on.on, &cgroup, user(vm.number));
        vm.assert_written();
        assert!(fs::read(&vm.fixed).expect("it") == fixed, "{}", vm.id);
    }
}
