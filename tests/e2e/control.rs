//! The control service with real VMs: its calls and codes, and what happens when processes are
//! killed in the middle of them. (What it makes of shims that misbehave is tested in its own crate.)

pub mod events;
mod killed;
mod many;

use std::path::{Path, PathBuf};

use fc_proto::control::{
    CreateVMRequest, FirecrackerBalloonDevice, FirecrackerClient, FirecrackerMachineConfiguration,
    FirecrackerNetworkInterface, GetVMInfoResponse, SetVMMetadataRequest,
    StaticNetworkConfiguration, UpdateBalloonRequest, UpdateBalloonStatsRequest,
    UpdateVMMetadataRequest,
};
use fc_proto::protobuf::MessageField;
use fc_proto::ttrpc::Code;
use rustix::process::{Pid, Signal, kill_process};

use crate::OnSetup;
use crate::daemon::{
    Daemon, PATIENCE, address, calls, client, create, ctx, failed, info, of, stop,
};
use crate::fixture::{Flavor, Instance, Setup, eventually};
use crate::tap::Tap;

/// Each starts an instance and a daemon of its own.
pub const TESTS: &[(&str, OnSetup)] = &[
    ("control::every_call", every_call),
    ("control::start_asks_the_daemon", start_asks_the_daemon),
    ("control::a_hung_vm_is_nobody_elses_trouble", hung),
    ("control::many_at_once_and_one_hangs", many::at_once),
    ("control::events_reach_containerd", events::reach_containerd),
    ("control::a_vm_that_dies", killed::vmm_or_shim),
    ("control::killed_daemon", killed::daemon),
    ("control::killed_containerd", killed::containerd),
];

/// VMs of the same longest id in two of the longest namespaces, one with a balloon and one without.
fn every_call(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let _daemon = Daemon::start(setup, &on);
    let tap = Tap::new();
    let id = "v".repeat(76);
    let (with, without) = ("n".repeat(76), "m".repeat(76));
    calls(async {
        let vm = client(&address(&on)).await;
        let request = CreateVMRequest {
            MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
                VcpuCount: 1,
                MemSizeMib: 160,
                ..FirecrackerMachineConfiguration::default()
            }),
            BalloonDevice: MessageField::some(FirecrackerBalloonDevice {
                AmountMib: 8,
                StatsPollingIntervals: 1,
                ..FirecrackerBalloonDevice::default()
            }),
            // Without an interface that reaches it a VM has no metadata service.
            NetworkInterfaces: vec![interface(&tap)],
            ContainerCount: 2,
            ..create(&id)
        };
        let plain = create(&id);
        let (first, second) = tokio::join!(
            vm.create_vm(ctx(&with), &request),
            vm.create_vm(ctx(&without), &plain)
        );
        let created = first.expect("CreateVM");
        second.expect("CreateVM in another namespace");
        let twice = vm.create_vm(ctx(&with), &request).await;
        assert_eq!(failed(twice).0, Code::ALREADY_EXISTS);

        let shown = vm
            .get_vm_info(ctx(&with), &info(&id))
            .await
            .expect("GetVMInfo");
        assert_eq!(shown.SocketPath, created.SocketPath);
        assert_eq!(shown.LogFifoPath, created.LogFifoPath);
        let paths = paths(&shown);
        assert!(paths.iter().all(|path| path.exists()), "{shown:?}");

        metadata(&vm, &with, &id).await;
        balloon(&vm, &with, &without, &id).await;
        vm.pause_vm(ctx(&without), &of(&id)).await.expect("PauseVM");
        vm.resume_vm(ctx(&without), &of(&id))
            .await
            .expect("ResumeVM");

        vm.stop_vm(ctx(&with), &stop(&id)).await.expect("StopVM");
        assert!(
            !paths.iter().any(|path| path.exists()),
            "gone when StopVM answers"
        );
        let gone = vm.get_vm_info(ctx(&with), &info(&id)).await;
        assert_eq!(failed(gone).0, Code::NOT_FOUND);
        // A paused VM cannot end by itself.
        vm.pause_vm(ctx(&without), &of(&id)).await.expect("PauseVM");
        let impatient = stop_within(&id, 1);
        let (code, text) = failed(vm.stop_vm(ctx(&without), &impatient).await);
        assert_eq!(code, Code::INTERNAL, "{text}");
        assert!(
            text.to_lowercase().contains("forcefully terminated vm"),
            "{text}"
        );
        assert!(on.vm_dirs().is_empty(), "{:?}", on.vm_dirs());

        // A VM that cannot be: the reason, and nothing left.
        let mut impossible = create("impossible");
        impossible.KernelImagePath = "/no/such/kernel".to_owned();
        let (code, text) = failed(vm.create_vm(ctx("ns"), &impossible).await);
        assert_ne!(code, Code::UNKNOWN, "{text}");
        assert!(text.contains("/no/such/kernel"), "{text}");
        let hasty = CreateVMRequest {
            TimeoutSeconds: 1,
            ..create("hasty")
        };
        let (code, text) = failed(vm.create_vm(ctx("ns"), &hasty).await);
        assert_eq!(code, Code::DEADLINE_EXCEEDED, "{text}");
        assert!(text.contains("\"hasty\" didn't start within 1s"), "{text}");
        assert!(on.vm_dirs().is_empty(), "{:?}", on.vm_dirs());
    });
    assert!(
        on.scope().processes().is_empty(),
        "{:?}",
        on.scope().processes()
    );
}

/// An interface through which the guest reaches the VM's metadata.
fn interface(tap: &Tap) -> FirecrackerNetworkInterface {
    FirecrackerNetworkInterface {
        AllowMMDS: true,
        StaticConfig: MessageField::some(StaticNetworkConfiguration {
            MacAddress: "06:00:c0:00:02:01".to_owned(),
            HostDevName: tap.name().to_owned(),
            ..StaticNetworkConfiguration::default()
        }),
        ..FirecrackerNetworkInterface::default()
    }
}

fn paths(info: &GetVMInfoResponse) -> Vec<PathBuf> {
    [
        &info.SocketPath,
        &info.VSockPath,
        &info.LogFifoPath,
        &info.MetricsFifoPath,
    ]
    .map(PathBuf::from)
    .to_vec()
}

async fn metadata(vm: &FirecrackerClient, namespace: &str, id: &str) {
    let set = SetVMMetadataRequest {
        Metadata: r#"{"a": {"b": 1}, "c": "x"}"#.to_owned(),
        ..of(id)
    };
    vm.set_vm_metadata(ctx(namespace), &set)
        .await
        .expect("SetVMMetadata");
    let update = UpdateVMMetadataRequest {
        Metadata: r#"{"a": {"d": 2}, "c": null}"#.to_owned(),
        ..of(id)
    };
    vm.update_vm_metadata(ctx(namespace), &update)
        .await
        .expect("UpdateVMMetadata");
    let got = vm
        .get_vm_metadata(ctx(namespace), &of(id))
        .await
        .expect("GetVMMetadata");
    let got: serde_json::Value = serde_json::from_str(&got.Metadata).expect("JSON");
    assert_eq!(got, serde_json::json!({"a": {"b": 1, "d": 2}}));
    let broken = SetVMMetadataRequest {
        Metadata: "{".to_owned(),
        ..of(id)
    };
    let answer = vm.set_vm_metadata(ctx(namespace), &broken).await;
    assert_eq!(failed(answer).0, Code::INVALID_ARGUMENT);
}

async fn balloon(vm: &FirecrackerClient, with: &str, without: &str, id: &str) {
    let config = vm
        .get_balloon_config(ctx(with), &of(id))
        .await
        .expect("GetBalloonConfig");
    assert_eq!(config.BalloonConfig.AmountMib, 8);
    let update = UpdateBalloonRequest {
        AmountMib: 16,
        ..of(id)
    };
    vm.update_balloon(ctx(with), &update)
        .await
        .expect("UpdateBalloon");
    let stats = vm
        .get_balloon_stats(ctx(with), &of(id))
        .await
        .expect("GetBalloonStats");
    assert_eq!(stats.TargetMib, 16);
    let interval = UpdateBalloonStatsRequest {
        StatsPollingIntervals: 2,
        ..of(id)
    };
    vm.update_balloon_stats(ctx(with), &interval)
        .await
        .expect("UpdateBalloonStats");
    let negative = UpdateBalloonRequest {
        AmountMib: -1,
        ..of(id)
    };
    let answer = vm.update_balloon(ctx(with), &negative).await;
    assert_eq!(failed(answer).0, Code::INVALID_ARGUMENT);
    let none = vm.get_balloon_config(ctx(without), &of(id)).await;
    let (code, text) = failed(none);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{text}");
}

/// A container's VM is the daemon's child where there is a daemon, and ends as any other.
fn start_asks_the_daemon(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let daemon = Daemon::start(setup, &on);
    on.run_detached(&[], "asked", &["/bin/sleep", "600"]);
    let shim = process(&on, "containerd-shim-aws-firecracker");
    assert_eq!(parent(shim), daemon.pid());
    // The shim writes, the daemon copies, and we save.
    let log = || std::fs::read_to_string(&daemon.log).expect("a log");
    assert!(
        eventually(|| log().contains("shim_stream=\"stderr\"")),
        "{}",
        log()
    );
    on.remove("asked");
    crate::lifecycle::expect_gone(&on);
}

/// The only process of this program.
#[track_caller]
fn process(on: &Instance, name: &str) -> i32 {
    let all = on.scope().processes();
    let mut named = all.iter().filter(|process| process.name == name);
    let pid = named
        .next()
        .unwrap_or_else(|| panic!("no {name} in {all:?}"))
        .pid;
    assert!(named.next().is_none(), "{all:?}");
    pid
}

fn parent(pid: i32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|pid| pid.trim().parse().ok())
        .expect("a parent")
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("a signal");
}

/// A VM whose VMM does nothing any more, while it is to be stopped; others come and go.
fn hung(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let _daemon = Daemon::start(setup, &on);
    calls(async {
        let vm = client(&address(&on)).await;
        vm.create_vm(ctx("ns"), &create("hung"))
            .await
            .expect("CreateVM");
        let vmm = vmm(&on, "ns#hung");
        signal(vmm, Signal::STOP);
        let patient = stop_within("hung", PATIENCE);
        let stopping = vm.stop_vm(ctx("ns"), &patient);
        tokio::pin!(stopping);
        let others = async {
            vm.create_vm(ctx("ns"), &create("other"))
                .await
                .expect("CreateVM");
            vm.get_vm_info(ctx("ns"), &info("other"))
                .await
                .expect("GetVMInfo");
            vm.stop_vm(ctx("ns"), &stop("other")).await.expect("StopVM");
        };
        tokio::select! {
            biased;
            answer = &mut stopping => panic!("the VMM is stopped, and yet: {answer:?}"),
            () = others => {}
        }
        signal(vmm, Signal::KILL);
        // It is gone, however that is called.
        let _ = stopping.await;
        assert!(on.vm_dirs().is_empty(), "{:?}", on.vm_dirs());
        vm.create_vm(ctx("ns"), &create("hung"))
            .await
            .expect("the name is free");
        vm.stop_vm(ctx("ns"), &stop("hung")).await.expect("StopVM");
    });
}

fn stop_within(vm_id: &str, seconds: u32) -> fc_proto::control::StopVMRequest {
    fc_proto::control::StopVMRequest {
        TimeoutSeconds: seconds,
        ..of(vm_id)
    }
}

/// The VMM of the VM with this directory.
#[track_caller]
fn vmm(on: &Instance, dir: &str) -> i32 {
    let all = on.scope().processes();
    let vmm = all.iter().find(|process| {
        process.cwd.ends_with(Path::new(dir)) && process.name.starts_with("firecracker")
    });
    vmm.unwrap_or_else(|| panic!("no VMM in {dir}: {all:?}"))
        .pid
}
