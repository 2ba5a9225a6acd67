//! The events of a VM's start and end, as a real containerd receives them.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{process, signal};
use crate::daemon::{BOUND, Daemon, address, calls, client, create, ctx, stop};
use crate::fixture::{Flavor, Instance, Setup};

/// For containerd's configuration: it logs each event that it takes, for [`taken`].
pub const DEBUG: &str = "[debug]\n  level = \"debug\"\n";
const START: &str = "/firecracker-vm/start";
/// Topic of a VM's end.
pub const STOP: &str = "/firecracker-vm/stop";

/// Both reach containerd, once, when a VM is stopped and when its shim is killed.
pub fn reach_containerd(setup: &Setup, flavor: &Flavor) {
    let on = Instance::with(setup, flavor, |_| {}, DEBUG);
    let _daemon = Daemon::start(setup, &on);
    calls(async {
        let vm = client(&address(&on)).await;
        vm.create_vm(ctx("ns-a"), &create("stopped"))
            .await
            .expect("CreateVM");
        vm.stop_vm(ctx("ns-a"), &stop("stopped"))
            .await
            .expect("StopVM");
        // The shim, which is gone, had waited until containerd had them.
        assert_eq!(
            [taken(&on, "ns-a", START), taken(&on, "ns-a", STOP)],
            [1, 1]
        );

        vm.create_vm(ctx("ns-b"), &create("killed"))
            .await
            .expect("CreateVM");
        // CreateVM does not wait for containerd, and what a shim still has to send dies with it.
        until_taken(&on, "ns-b", START).await;
        let shim = process(&on, "containerd-shim-aws-firecracker");
        signal(shim, Signal::KILL);
        until_taken(&on, "ns-b", STOP).await;
        assert_eq!(
            [taken(&on, "ns-b", START), taken(&on, "ns-b", STOP)],
            [1, 1]
        );
    });
    crate::lifecycle::expect_gone(&on);
    assert_eq!([taken(&on, "ns-a", STOP), taken(&on, "ns-b", STOP)], [1, 1]);
}

/// Waits until containerd took an event of this topic: its log is a file, of which nobody tells when it grows.
async fn until_taken(on: &Instance, namespace: &str, topic: &str) {
    let begin = Instant::now();
    while taken(on, namespace, topic) == 0 && begin.elapsed() < BOUND {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// How many events of this topic containerd took for a namespace.
pub fn taken(on: &Instance, namespace: &str, topic: &str) -> usize {
    let log = std::fs::read_to_string(on.containerd.log()).expect("containerd's log");
    let fields = [format!("ns={namespace} "), format!("topic={topic} ")];
    log.lines()
        .filter(|line| line.contains("event forwarded"))
        .filter(|line| fields.iter().all(|field| line.contains(field)))
        .count()
}
