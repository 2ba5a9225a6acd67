//! What is left when callers, shims and daemons go away in the middle: nothing, or a VM that runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fc_proto::containerd::shim::event::Envelope;
use fc_proto::containerd::shim::events::ForwardRequest;
use fc_proto::containerd::shim_async::{Events, create_events};
use fc_proto::control::VMStop;
use fc_proto::protobuf::Message;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc::asynchronous::{Server, TtrpcContext};
use fc_proto::ttrpc::{self, Code};
use fc_rpc::client::context;
use fc_vm::dir::VmDir;
use fc_vm::lock::StartLock;
use tokio::sync::mpsc;

use crate::setup::*;

crate::tests!(
    a_create_that_is_given_up_leaves_nothing,
    a_create_that_takes_too_long_leaves_nothing,
    a_dead_shim_is_undone_at_once_and_announced,
    vms_survive_the_daemon,
    a_daemon_killed_in_a_create_or_stop_leaves_no_riddle,
    a_new_daemon_clears_what_dead_shims_left,
    a_vm_that_hangs_delays_no_other_at_the_daemons_start,
);

async fn a_create_that_is_given_up_leaves_nothing() {
    let mut setup = Setup::new();
    let _daemon = setup.daemon().await;
    let connection = setup.client().await;
    let caller = tokio::spawn(async move {
        let context = context("ns", Duration::ZERO);
        drop(connection.client.create_vm(context, &create("hangs")).await);
    });
    let (_, vmm) = setup.processes("ns/hangs").await;
    setup.said("ns/hangs", "asked").await;
    caller.abort();
    setup.said("ns/hangs", "ends").await;
    // The next call for the name waits for the end of the last one.
    let vm = setup.client().await.client;
    vm.create_vm(ctx("ns"), &created_at_once("hangs"))
        .await
        .expect("CreateVM");
    assert!(is_gone(vmm));
    vm.stop_vm(ctx("ns"), &stop("hangs")).await.expect("StopVM");
    setup.expect_nothing(&setup.sockets("ns", "hangs"));
}

fn created_at_once(vm_id: &str) -> fc_proto::control::CreateVMRequest {
    fc_proto::control::CreateVMRequest {
        ReturnWhenLaunched: true,
        ..create(vm_id)
    }
}

async fn a_create_that_takes_too_long_leaves_nothing() {
    let mut bound = Duration::from_millis(300);
    let mut hasty = Vec::new();
    // On a busy machine the time may be over before the shim is asked: once more, with more of it.
    while let Err(setup) = takes_too_long(bound).await {
        hasty.push(setup);
        bound *= 2;
        assert!(bound < BOUND, "the shim was never asked");
    }
    for setup in hasty {
        gone(&setup.base().join("ns#hangs")).await;
    }
}

/// Gives the setup back if the time was over before the shim was asked, or even started: it ends later then.
async fn takes_too_long(bound: Duration) -> Result<(), Setup> {
    let mut setup = Setup::new();
    std::fs::create_dir(setup.base()).expect("a directory");
    let connection = setup.own().await;
    let request = create("hangs");
    let create = connection.client.create_vm(context("ns", bound), &request);
    create.await.expect_err("the time is over");
    if !setup.has_said("ns/hangs", "asked") {
        return Err(setup);
    }
    setup.said("ns/hangs", "terminated").await;
    setup.said("ns/hangs", "ends").await;
    gone(&setup.base().join("ns#hangs")).await;
    setup.expect_nothing(&setup.sockets("ns", "hangs"));
    Ok(())
}

/// containerd, as far as events go.
struct Containerd(mpsc::UnboundedSender<Envelope>);

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let event = request.envelope.into_option().expect("an event");
        self.0.send(event).expect("the test listens");
        Ok(Empty::default())
    }
}

/// Serves events at `address`.
pub async fn containerd(address: &Path) -> (Server, mpsc::UnboundedReceiver<Envelope>) {
    let (sender, events) = mpsc::unbounded_channel();
    let mut server = Server::new()
        .bind(&format!("unix://{}", address.display()))
        .expect("a socket")
        .register_service(create_events(Arc::new(Containerd(sender))));
    server.start().await.expect("a server");
    (server, events)
}

async fn a_dead_shim_is_undone_at_once_and_announced() {
    let mut setup = Setup::new();
    let (_containerd, mut events) = containerd(&setup.path("containerd.sock.ttrpc")).await;
    let daemon = setup.daemon().await;
    let vm = setup.client().await.client;
    vm.create_vm(ctx("ns-1"), &create("started-here"))
        .await
        .expect("CreateVM");
    let (shim, vmm) = setup.processes("ns-1/started-here").await;
    kill(shim);
    expect_stop(&mut events, "ns-1", "started-here").await;
    assert!(is_gone(vmm));
    setup.expect_nothing(&setup.sockets("ns-1", "started-here"));

    // The same for a VM of a former daemon.
    vm.create_vm(ctx("ns-2"), &create("found"))
        .await
        .expect("CreateVM");
    let (shim, vmm) = setup.processes("ns-2/found").await;
    daemon.kill().await;
    let mut daemon = setup.daemon().await;
    daemon.logged("Found a VM").await;
    kill(shim);
    expect_stop(&mut events, "ns-2", "found").await;
    assert!(is_gone(vmm));
    setup.expect_nothing(&setup.sockets("ns-2", "found"));
}

async fn expect_stop(events: &mut mpsc::UnboundedReceiver<Envelope>, namespace: &str, vm_id: &str) {
    assert_eq!(next_stop(events, namespace).await, vm_id);
}

/// Expects the end of a VM as the next event, and answers the VM's id.
pub async fn next_stop(events: &mut mpsc::UnboundedReceiver<Envelope>, namespace: &str) -> String {
    let event = tokio::time::timeout(BOUND, events.recv()).await;
    let event = event.expect("an event").expect("an event");
    assert_eq!(
        (event.namespace.as_str(), event.topic.as_str()),
        (namespace, "/firecracker-vm/stop")
    );
    let payload = event.event.into_option().expect("a payload");
    assert_eq!(payload.type_url, "VMStop");
    VMStop::parse_from_bytes(&payload.value)
        .expect("a VMStop")
        .VMID
}

async fn vms_survive_the_daemon() {
    let mut setup = Setup::new();
    let mut daemon = setup.daemon().await;
    let vm = setup.client().await.client;
    vm.create_vm(ctx("ns"), &create("a"))
        .await
        .expect("CreateVM");
    let line = daemon.logged("stand-in for a speaking").await;
    assert!(line.contains("vmID=\"a\""), "{line}");
    let (shim, _) = setup.processes("ns/a").await;
    // In good order, and not.
    let pid = daemon.child.id().expect("it runs");
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
    assert!(daemon.child.wait().await.expect("its end").success());
    assert!(!setup.path("control.sock").exists());
    let daemon = setup.daemon().await;
    daemon.kill().await;
    assert!(setup.path("control.sock").exists(), "a stale socket");
    let _daemon = setup.daemon().await;
    assert!(!is_gone(shim));
    let vm = setup.client().await.client;
    let info = vm
        .get_vm_info(ctx("ns"), &info("a"))
        .await
        .expect("GetVMInfo");
    assert_eq!(info.SocketPath, "ns/a");
    assert_eq!(
        failed(vm.create_vm(ctx("ns"), &create("a")).await).0,
        Code::ALREADY_EXISTS
    );
    vm.stop_vm(ctx("ns"), &stop("a")).await.expect("StopVM");
    assert!(is_gone(shim), "also of a shim that is nobody's child");
    setup.expect_nothing(&setup.sockets("ns", "a"));
}

async fn a_daemon_killed_in_a_create_or_stop_leaves_no_riddle() {
    let mut setup = Setup::new();
    let daemon = setup.daemon().await;
    let vm = setup.client().await.client;
    let caller = tokio::spawn(async move { vm.create_vm(ctx("ns"), &create("hangs")).await });
    setup.said("ns/hangs", "asked").await;
    daemon.kill().await;
    caller
        .await
        .expect("a task")
        .expect_err("the connection broke");
    // The VM goes on booting, and has a name.
    let daemon = setup.daemon().await;
    let vm = setup.client().await.client;
    assert_eq!(
        failed(vm.create_vm(ctx("ns"), &create("hangs")).await).0,
        Code::ALREADY_EXISTS
    );
    vm.stop_vm(ctx("ns"), &stop("hangs")).await.expect("StopVM");
    setup.expect_nothing(&setup.sockets("ns", "hangs"));

    // In a StopVM whose shim does not end.
    vm.create_vm(ctx("ns"), &create("stays"))
        .await
        .expect("CreateVM");
    let (shim, _) = setup.processes("ns/stays").await;
    let caller = tokio::spawn(async move { vm.stop_vm(ctx("ns"), &stop("stays")).await });
    let vm = setup.client().await.client;
    // A call that is answered after the other was received.
    vm.get_vm_info(ctx("ns"), &info("stays"))
        .await
        .expect("GetVMInfo");
    daemon.kill().await;
    caller
        .await
        .expect("a task")
        .expect_err("the connection broke");
    kill(shim);
    let _daemon = setup.daemon().await;
    gone(&setup.base().join("ns#stays")).await;
    let vm = setup.client().await.client;
    assert_eq!(
        failed(vm.stop_vm(ctx("ns"), &stop("stays")).await).0,
        Code::NOT_FOUND
    );
}

async fn a_new_daemon_clears_what_dead_shims_left() {
    let mut setup = Setup::new();
    let daemon = setup.daemon().await;
    let vm = setup.client().await.client;
    vm.create_vm(ctx("ns"), &create("a"))
        .await
        .expect("CreateVM");
    let (shim, vmm) = setup.processes("ns/a").await;
    daemon.kill().await;
    kill(shim);
    assert!(!is_gone(vmm));
    let sockets = setup.sockets("ns", "a");
    assert!(sockets.iter().all(|socket| socket.exists()));
    let mut daemon = setup.daemon().await;
    daemon.logged("what it left is gone now").await;
    assert!(is_gone(vmm));
    setup.expect_nothing(&sockets);
}

async fn a_vm_that_hangs_delays_no_other_at_the_daemons_start() {
    let mut setup = Setup::new();
    let (_containerd, mut events) = containerd(&setup.path("containerd.sock.ttrpc")).await;
    let daemon = setup.daemon().await;
    let vm = setup.client().await.client;
    for vm_id in ["dead", "runs"] {
        vm.create_vm(ctx("ns"), &create(vm_id))
            .await
            .expect("CreateVM");
    }
    let (shim, _) = setup.processes("ns/dead").await;
    daemon.kill().await;
    kill(shim);
    // First in every list. We are who starts its shim, and never get on.
    let hung = VmDir::new(&setup.base(), "a", "hung").expect("names");
    let starter = StartLock::take(&hung).expect("a lock");

    let mut daemon = setup.daemon().await;
    let line = daemon.logged("Found a VM").await;
    assert!(line.contains("vmID=\"runs\""), "{line}");
    expect_stop(&mut events, "ns", "dead").await;
    // Its turn comes when it hangs no more.
    assert!(hung.path().exists());
    drop(starter);
    gone(hung.path()).await;
    let vm = setup.client().await.client;
    vm.stop_vm(ctx("ns"), &stop("runs")).await.expect("StopVM");
    setup.expect_nothing(&setup.sockets("ns", "runs"));
}
