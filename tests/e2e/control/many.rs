//! Many VMs at once, one of them hanging.

use std::time::Duration;

use fc_proto::control::{CreateVMRequest, FirecrackerMachineConfiguration};
use fc_proto::protobuf::MessageField;
use fc_proto::ttrpc::context::{Context, with_duration};
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::{signal, stop_within, vmm};
use crate::daemon::{Daemon, address, calls, client, create};
use crate::fixture::{Flavor, Instance, Setup};

const VMS: usize = 20;
/// How long each of so many boots may take, in seconds: emulated, on two busy cores.
const PATIENCE: u32 = 600;
/// The least that the test image boots with, and a little.
const MEMORY_MIB: u32 = 96;

/// VMs come up and are stopped, all at the same time, while CreateVM of another one hangs from before to after.
pub fn at_once(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let _daemon = Daemon::start(setup, &on);
    calls(async {
        let vm = client(&address(&on)).await;
        let hanging = {
            let vm = vm.clone();
            tokio::spawn(async move { vm.create_vm(patient(), &small("hung")).await })
        };
        // Before that a VMM that hangs is noticed: no call to its API waits that long.
        happened(&on, "hung", "instance_started").await;
        let stuck = vmm(&on, "ns#hung");
        signal(stuck, Signal::STOP);

        let mut all = JoinSet::new();
        for i in 0..VMS {
            let vm = vm.clone();
            let request = small(&format!("vm-{i}"));
            all.spawn(async move { vm.create_vm(patient(), &request).await.map(drop) });
        }
        while let Some(created) = all.join_next().await {
            created.expect("a task").expect("CreateVM");
        }
        assert_eq!(on.vm_dirs().len(), VMS + 1);
        assert!(!hanging.is_finished(), "its VMM is stopped");

        for i in 0..VMS {
            let vm = vm.clone();
            let request = stop_within(&format!("vm-{i}"), PATIENCE);
            all.spawn(async move { vm.stop_vm(patient(), &request).await.map(drop) });
        }
        while let Some(stopped) = all.join_next().await {
            stopped.expect("a task").expect("StopVM");
        }
        assert!(!hanging.is_finished(), "its VMM is stopped");
        let left = on.vm_dirs();
        assert!(
            matches!(&left[..], [dir] if dir.ends_with("ns#hung")),
            "{left:?}"
        );

        signal(stuck, Signal::KILL);
        let hung = hanging.await.expect("a task");
        hung.expect_err("its VMM was killed");
        assert!(on.vm_dirs().is_empty(), "{:?}", on.vm_dirs());
    });
}

/// Waits for an event of a VM's timeline.
async fn happened(on: &Instance, vm_id: &str, event: &str) {
    let fields = [("vm", vm_id), ("event", event)];
    let fields = fields.map(|(key, value)| format!("\"{key}\":\"{value}\""));
    loop {
        // The file is made with its first line.
        let lines = std::fs::read_to_string(on.layout.timeline()).unwrap_or_default();
        let found = |line: &str| fields.iter().all(|field| line.contains(field));
        if lines.lines().any(found) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn small(vm_id: &str) -> CreateVMRequest {
    CreateVMRequest {
        MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
            VcpuCount: 1,
            MemSizeMib: MEMORY_MIB,
            ..FirecrackerMachineConfiguration::default()
        }),
        TimeoutSeconds: PATIENCE,
        ..create(vm_id)
    }
}

fn patient() -> Context {
    let mut context = with_duration(Duration::from_secs(PATIENCE.into()));
    context.set(
        "containerd-namespace-ttrpc".to_owned(),
        vec!["ns".to_owned()],
    );
    context
}
