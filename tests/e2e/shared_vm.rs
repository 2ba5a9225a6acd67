//! Containers that share a VM by annotation.

use std::time::{Duration, SystemTime};

use fc_proto::control::{FirecrackerClient, StopVMRequest};
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::context::{self, Context};
use sha2::{Digest, Sha256};

use crate::OnInstance;
use crate::daemon::{BOUND, PATIENCE};
use crate::fixture::Instance;

/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] = &[
    ("shared_vm::join_fill_and_leave", join_fill_and_leave),
    ("shared_vm::paused_and_resumed", paused_and_resumed),
];

const SLEEP: [&str; 2] = ["/bin/sleep", "600"];
const BOOT_ID: [&str; 2] = ["/bin/cat", "/proc/sys/kernel/random/boot_id"];

/// Joins a VM, fills its slots, frees one and uses it again: one VM for all of it.
fn join_fill_and_leave(on: &Instance) {
    let shared = ["--annotation", "aws.firecracker.vm.id=shared"];
    on.run_detached(&shared, "s1", &SLEEP);
    let first = on.run(&shared, "s2", &BOOT_ID).expect(0).text();
    let second = on.run(&shared, "s2", &BOOT_ID).expect(0).text();
    assert_eq!(first, second, "both ran in one VM");
    assert!(exists(on, "shared"));

    for id in ["s2", "s3", "s4"] {
        on.run_detached(&shared, id, &SLEEP);
    }
    let fifth = on.run(&shared, "s5", &["/bin/true"]);
    assert_ne!(fifth.code, 0);
    assert!(
        fifth
            .stderr
            .contains("There are no remaining drives to be used"),
        "{}",
        fifth.stderr
    );
    assert!(
        fifth.stderr.contains("default_container_count"),
        "names what to set: {}",
        fifth.stderr
    );
    on.remove("s4");
    on.run(&shared, "s5", &["/bin/true"]).expect(0);
    for id in ["s1", "s2", "s3"] {
        on.remove(id);
    }
    stop_vm(on, "shared");
    assert!(!exists(on, "shared"), "{:?}", on.vm_dirs());
}

fn exists(on: &Instance, vm: &str) -> bool {
    let name = format!("default#{vm}");
    on.vm_dirs().iter().any(|dir| dir.ends_with(&name))
}

/// A VM that was paused goes on where it was, but with the host's time.
fn paused_and_resumed(on: &Instance) {
    use fc_proto::control::{PauseVMRequest, ResumeVMRequest};

    on.run_detached(
        &["--annotation", "aws.firecracker.vm.id=paused"],
        "p1",
        &SLEEP,
    );
    let pause = Duration::from_secs(3);
    control(on, "paused", async |client, context| {
        let mut request = PauseVMRequest::new();
        request.VMID = "paused".to_owned();
        client.pause_vm(context(), &request).await.expect("PauseVM");
        tokio::time::sleep(pause).await;
        let mut request = ResumeVMRequest::new();
        request.VMID = "paused".to_owned();
        client
            .resume_vm(context(), &request)
            .await
            .expect("ResumeVM");
    });
    let date = [
        "task",
        "exec",
        "--exec-id",
        "date",
        "p1",
        "/bin/date",
        "+%s",
    ];
    let now = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.expect("after 1970").as_secs()
    };
    // However long the answer takes on its way: the guest read its clock in between.
    let before = now();
    let guest = on.ctr(&date).expect(0).text();
    let guest: u64 = guest.trim().parse().expect("seconds");
    let after = now();
    assert!(
        (before - 1..=after + 1).contains(&guest),
        "{guest}, not {before} to {after}"
    );
    on.remove("p1");
    stop_vm(on, "paused");
}

/// Ends a VM that outlives its tasks.
pub fn stop_vm(on: &Instance, id: &str) {
    control(on, id, async |client, context| {
        let mut request = StopVMRequest::new();
        request.VMID = id.to_owned();
        request.TimeoutSeconds = PATIENCE;
        client.stop_vm(context(), &request).await.expect("StopVM");
    });
}

/// Calls the control API of a VM at the original's address ([SHM-7], [PATH-2]): a client of the
/// original must find it there.
fn control(on: &Instance, id: &str, calls: impl AsyncFnOnce(FirecrackerClient, fn() -> Context)) {
    on_control_socket(on, id, async |client, context| {
        calls(FirecrackerClient::new(client), context).await;
    });
}

/// The same for any service on that socket.
pub fn on_control_socket<T>(
    on: &Instance,
    id: &str,
    calls: impl AsyncFnOnce(Client, fn() -> Context) -> T,
) -> T {
    on_socket(on, id, Socket::Control, async |client| {
        let context = || context::with_duration(BOUND);
        calls(client, context).await
    })
}

/// Which of a VM's sockets.
#[derive(Clone, Copy)]
pub enum Socket {
    /// The task API, for containerd.
    Task,
    /// The control API.
    Control,
}

/// Calls what a VM's shim serves on one of its sockets.
pub fn on_socket<T>(
    on: &Instance,
    id: &str,
    socket: Socket,
    calls: impl AsyncFnOnce(Client) -> T,
) -> T {
    let joined = format!("{}/default/{id}", on.containerd.socket().display());
    let hash: String = Sha256::digest(joined)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let suffix = match socket {
        Socket::Task => "",
        Socket::Control => "-fccontrol",
    };
    let socket = format!("unix:///run/containerd/s/{hash}{suffix}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async { calls(Client::connect(&socket).await.expect("connect")).await })
}
