//! What callers get: answers, codes, and no waiting for others.

use std::path::Path;
use std::time::Duration;

use fc_control::client::Connection;
use fc_proto::control::*;
use fc_proto::protobuf::{MessageField, MessageFull};
use fc_proto::ttrpc::Code;
use fc_proto::ttrpc::context::Context;
use tokio::task::JoinSet;

use crate::ends::{containerd, next_stop};
use crate::setup::*;

crate::tests!(
    every_call_by_daemon,
    every_call_without_daemon,
    codes_by_daemon,
    codes_without_daemon,
    nobody_waits_for_a_vm_that_hangs,
    a_shim_that_is_silent_is_stopped_all_the_same,
    paths_as_the_original_answers_them,
    launched_is_enough_when_asked_so,
);

async fn every_call_by_daemon() {
    let mut setup = Setup::new();
    let _daemon = setup.daemon().await;
    let connection = setup.client().await;
    every_call(&mut setup, connection).await;
}

async fn every_call_without_daemon() {
    let mut setup = Setup::new();
    let connection = setup.own().await;
    every_call(&mut setup, connection).await;
}

/// All calls, to VMs of one id in two namespaces with the longest names.
async fn every_call(setup: &mut Setup, connection: Connection) {
    let vm = &connection.client;
    let id = "v".repeat(76);
    let namespaces = ["n".repeat(76), "m".repeat(76)];
    for namespace in &namespaces {
        let created = vm
            .create_vm(ctx(namespace), &create(&id))
            .await
            .expect("CreateVM");
        assert_eq!(created.VMID, id);
        assert_eq!(created.SocketPath, format!("{namespace}/{id}"));
        assert_eq!(created.CgroupPath, "321 MiB", "the request arrived");
    }
    for namespace in &namespaces {
        let c = || ctx(namespace);
        let info = vm.get_vm_info(c(), &info(&id)).await.expect("GetVMInfo");
        assert_eq!(info.SocketPath, format!("{namespace}/{id}"));
        vm.pause_vm(c(), &of(&id)).await.expect("PauseVM");
        vm.resume_vm(c(), &of(&id)).await.expect("ResumeVM");
        vm.set_vm_metadata(c(), &of(&id))
            .await
            .expect("SetVMMetadata");
        vm.update_vm_metadata(c(), &of(&id))
            .await
            .expect("UpdateVMMetadata");
        let metadata = vm
            .get_vm_metadata(c(), &of(&id))
            .await
            .expect("GetVMMetadata");
        assert_eq!(metadata.Metadata, format!("{namespace}/{id}"));
        let config = vm
            .get_balloon_config(c(), &of(&id))
            .await
            .expect("GetBalloonConfig");
        assert!(config.BalloonConfig.is_some());
        vm.update_balloon(c(), &of(&id))
            .await
            .expect("UpdateBalloon");
        let stats = vm
            .get_balloon_stats(c(), &of(&id))
            .await
            .expect("GetBalloonStats");
        assert_eq!(stats.TargetMib, 7);
        vm.update_balloon_stats(c(), &of(&id))
            .await
            .expect("UpdateBalloonStats");
    }
    let names = setup.vms();
    let names: Vec<_> = names.iter().map(|vm| vm.dir.namespace()).collect();
    assert_eq!(names, [&namespaces[1], &namespaces[0]]);
    for namespace in &namespaces {
        let (shim, vmm) = setup.processes(&format!("{namespace}/{id}")).await;
        vm.stop_vm(ctx(namespace), &stop(&id))
            .await
            .expect("StopVM");
        assert!(is_gone(shim) && is_gone(vmm), "when StopVM answers");
    }
    setup.expect_nothing(&setup.sockets(&namespaces[0], &id));
    // The name is free at once.
    let again = vm.create_vm(ctx(&namespaces[0]), &create(&id)).await;
    again.expect("CreateVM again");
    vm.stop_vm(ctx(&namespaces[0]), &stop(&id))
        .await
        .expect("StopVM again");
}

/// A request for a VM with everything else unset.
fn of<R: MessageFull>(vm_id: &str) -> R {
    let mut request = R::new();
    let field = R::descriptor().field_by_name("VMID").expect("VMID");
    field.set_singular_field(&mut request, vm_id.to_owned().into());
    request
}

async fn codes_by_daemon() {
    let setup = Setup::new();
    let _daemon = setup.daemon().await;
    codes(&setup, setup.client().await).await;
}

async fn codes_without_daemon() {
    let setup = Setup::new();
    codes(&setup, setup.own().await).await;
}

async fn codes(setup: &Setup, connection: Connection) {
    let vm = &connection.client;
    // No namespace, or none that could be one.
    let (code, text) = failed(vm.create_vm(Context::default(), &create("a")).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(
        text.starts_with("error retrieving namespace of request: "),
        "{text}"
    );
    let (code, _) = failed(vm.get_vm_info(ctx("no/name"), &info("a")).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);

    // An id that is none; the same for calls that pass through.
    for id in ["", "a/b", "-a", "..", &"x".repeat(77)] {
        assert_eq!(
            failed(vm.create_vm(ctx("ns"), &create(id)).await).0,
            Code::INVALID_ARGUMENT
        );
        assert_eq!(
            failed(vm.stop_vm(ctx("ns"), &stop(id)).await).0,
            Code::INVALID_ARGUMENT
        );
        assert_eq!(
            failed(vm.pause_vm(ctx("ns"), &of(id)).await).0,
            Code::INVALID_ARGUMENT
        );
    }

    // Nobody.
    assert_eq!(
        failed(vm.stop_vm(ctx("ns"), &stop("nobody")).await).0,
        Code::NOT_FOUND
    );
    let (code, text) = failed(vm.get_vm_info(ctx("ns"), &info("nobody")).await);
    assert_eq!(
        (code, text.as_str()),
        (
            Code::NOT_FOUND,
            "VM \"nobody\" does not exist in namespace \"ns\""
        )
    );

    // Another containerd's.
    let mut other = ctx("ns");
    other.set(
        CONTAINERD_ADDRESS_KEY.to_owned(),
        vec!["/other.sock".to_owned()],
    );
    let (code, text) = failed(vm.create_vm(other, &create("a")).await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(text.contains("/other.sock"), "{text}");

    // Twice.
    vm.create_vm(ctx("ns"), &create("twice"))
        .await
        .expect("CreateVM");
    let (code, text) = failed(vm.create_vm(ctx("ns"), &create("twice")).await);
    assert_eq!(code, Code::ALREADY_EXISTS);
    assert!(
        text.starts_with("VM with ID \"twice\" already exists"),
        "{text}"
    );
    vm.get_vm_info(ctx("ns"), &info("twice"))
        .await
        .expect("the first one goes on");
    vm.stop_vm(ctx("ns"), &stop("twice")).await.expect("StopVM");

    // What a shim answers, after its end.
    let (code, text) = failed(vm.create_vm(ctx("ns"), &create("fails")).await);
    assert_eq!(
        (code, text.as_str()),
        (Code::DEADLINE_EXCEEDED, "didn't start")
    );
    setup.expect_nothing(&setup.sockets("ns", "fails"));
    vm.create_vm(ctx("ns"), &create("forced"))
        .await
        .expect("CreateVM");
    let (code, text) = failed(vm.stop_vm(ctx("ns"), &stop("forced")).await);
    assert_eq!(
        (code, text.as_str()),
        (Code::INTERNAL, "forcefully terminated VM")
    );
    setup.expect_nothing(&setup.sockets("ns", "forced"));

    // A shim that dies before it can say why, and one that dies in StopVM, which is as good as stopped.
    let (code, text) = failed(vm.create_vm(ctx("ns"), &create("dies")).await);
    assert_eq!(code, Code::INTERNAL);
    assert!(text.contains("\"no such luck\""), "{text}");
    setup.expect_nothing(&setup.sockets("ns", "dies"));
    vm.create_vm(ctx("ns"), &create("crashes"))
        .await
        .expect("CreateVM");
    vm.stop_vm(ctx("ns"), &stop("crashes"))
        .await
        .expect("StopVM");
    setup.expect_nothing(&setup.sockets("ns", "crashes"));
}

/// 20 VMs are made and ended while calls to others hang: one whose VM never boots, one whose shim
/// does nothing at all, one whose shim does not end.
async fn nobody_waits_for_a_vm_that_hangs() {
    let mut setup = Setup::new();
    let _daemon = setup.daemon().await;
    let vm = setup.client().await.client;
    let mut hung = JoinSet::new();
    for id in ["hangs", "silent", "stays"] {
        let vm = vm.clone();
        if id == "stays" {
            vm.create_vm(ctx("ns"), &create(id))
                .await
                .expect("CreateVM");
            let patient = StopVMRequest {
                TimeoutSeconds: 600,
                ..stop(id)
            };
            hung.spawn(async move { drop(vm.stop_vm(Context::default_in("ns"), &patient).await) });
        } else {
            let request = create(id);
            hung.spawn(
                async move { drop(vm.create_vm(Context::default_in("ns"), &request).await) },
            );
        }
        setup.processes(&format!("ns/{id}")).await;
    }
    // One alone is quick enough that even the silent shim has not been given up when it is gone.
    vm.create_vm(ctx("ns"), &create("alone"))
        .await
        .expect("CreateVM");
    vm.stop_vm(ctx("ns"), &stop("alone")).await.expect("StopVM");
    assert!(
        hung.try_join_next().is_none(),
        "the others hang on, nobody waited for them"
    );

    let ids: Vec<String> = (0..20).map(|i| format!("vm-{i}")).collect();
    let mut calls = JoinSet::new();
    for id in ids.clone() {
        let vm = vm.clone();
        calls.spawn(async move { vm.create_vm(ctx("ns"), &create(&id)).await.map(drop) });
    }
    while let Some(created) = calls.join_next().await {
        created.expect("a task").expect("CreateVM");
    }
    assert_eq!(but_silent(&setup).len(), 22);
    for id in ids {
        let vm = vm.clone();
        calls.spawn(async move { vm.stop_vm(ctx("ns"), &stop(&id)).await.map(drop) });
    }
    while let Some(stopped) = calls.join_next().await {
        stopped.expect("a task").expect("StopVM");
    }
    assert_eq!(but_silent(&setup), ["hangs", "stays"]);
}

/// The VMs that are there, but for the one that is given up when all this takes long.
fn but_silent(setup: &Setup) -> Vec<String> {
    let vms = setup.vms();
    let names = vms.iter().map(|vm| vm.dir.vm_id().to_owned());
    names.filter(|name| name != "silent").collect()
}

/// A context with a namespace and no bound.
trait In {
    fn default_in(namespace: &str) -> Self;
}

impl In for Context {
    fn default_in(namespace: &str) -> Self {
        fc_rpc::client::context(namespace, Duration::ZERO)
    }
}

/// A call to a shim that does not answer says so; StopVM ends it, and its VM.
async fn a_shim_that_is_silent_is_stopped_all_the_same() {
    let mut setup = Setup::new();
    let (_containerd, mut events) = containerd(&setup.path("containerd.sock.ttrpc")).await;
    let _daemon = setup.daemon().await;
    let vm = setup.client().await.client;
    // One that never served, one that hangs while it runs, and one that answers but does not end.
    let ids = ["silent", "runs", "stays"];
    let mut processes = Vec::new();
    for id in ids {
        let mut request = create(id);
        request.ReturnWhenLaunched = true;
        vm.create_vm(ctx("ns"), &request).await.expect("CreateVM");
        processes.push(setup.processes(&format!("ns/{id}")).await);
    }
    vm.get_vm_info(ctx("ns"), &info("runs"))
        .await
        .expect("GetVMInfo");
    let [silent, runs] = [processes[0].0, processes[1].0];
    let pid = rustix::process::Pid::from_raw(runs.cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("SIGSTOP");
    let (code, text) = failed(vm.get_vm_info(ctx("ns"), &info("silent")).await);
    assert_eq!(code, Code::UNAVAILABLE);
    assert!(text.contains(&format!("(process {silent})")), "{text}");
    assert!(!is_gone(silent), "only a stop ends it");

    let stops = ids.map(|id| StopVMRequest {
        TimeoutSeconds: 1,
        ..stop(id)
    });
    let stopped = stops.each_ref().map(|stop| vm.stop_vm(ctx("ns"), stop));
    let answers = futures_util::future::join_all(stopped).await;
    for ((answer, id), (shim, vmm)) in answers.into_iter().zip(ids).zip(processes) {
        let (code, text) = failed(answer);
        assert_eq!(code, Code::INTERNAL);
        let expected = format!("forcefully terminated VM {id}: ");
        assert!(text.starts_with(&expected), "{text}");
        assert!(is_gone(shim) && is_gone(vmm));
        setup.expect_nothing(&setup.sockets("ns", id));
    }
    let mut told = Vec::new();
    for _ in ids {
        told.push(next_stop(&mut events, "ns").await);
    }
    told.sort();
    assert_eq!(told, ["runs", "silent", "stays"]);
    assert!(events.try_recv().is_err(), "never twice");
    for stop in &stops {
        assert_eq!(failed(vm.stop_vm(ctx("ns"), stop).await).0, Code::NOT_FOUND);
    }
}

/// With ReturnWhenLaunched nobody waits for the boot, and its failure is the later calls'.
async fn launched_is_enough_when_asked_so() {
    let mut setup = Setup::new();
    let _daemon = setup.daemon().await;
    let vm = setup.client().await.client;
    let mut request = create("hangs");
    request.ReturnWhenLaunched = true;
    let created = vm.create_vm(ctx("ns"), &request).await.expect("CreateVM");
    assert_eq!(created.VMID, "hangs");
    setup.processes("ns/hangs").await;
    assert_eq!(
        failed(vm.create_vm(ctx("ns"), &request).await).0,
        Code::ALREADY_EXISTS
    );
    vm.stop_vm(ctx("ns"), &stop("hangs")).await.expect("StopVM");
    setup.expect_nothing(&setup.sockets("ns", "hangs"));
}

/// With `original_vm_info_paths` CreateVM answers no FIFO paths, and a jail changes no path.
async fn paths_as_the_original_answers_them() {
    for original in [false, true] {
        let setup = Setup::with(&serde_json::json!({"original_vm_info_paths": original}));
        let _daemon = setup.daemon().await;
        let vm = setup.client().await.client;
        let created = vm.create_vm(ctx("ns"), &create("a")).await;
        let created = created.expect("CreateVM");
        let fifos = [created.LogFifoPath, created.MetricsFifoPath];
        let expected = if original {
            ["", ""]
        } else {
            ["log", "metrics"]
        };
        assert_eq!(fifos, expected);
        vm.stop_vm(ctx("ns"), &stop("a")).await.expect("StopVM");

        let mut request = create("b");
        request.ReturnWhenLaunched = true;
        request.JailerConfig = MessageField::some(JailerConfig::default());
        let created = vm.create_vm(ctx("ns"), &request).await.expect("CreateVM");
        let socket = if original {
            "firecracker.sock"
        } else {
            "rootfs/api.socket"
        };
        let expected = setup.base().join("ns#b").join(socket);
        assert_eq!(Path::new(&created.SocketPath), expected);
        vm.stop_vm(ctx("ns"), &stop("b")).await.expect("StopVM");
    }
}
