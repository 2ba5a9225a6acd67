//! Processes that are killed: a VM's VMM and shim, the daemon, containerd.

use std::path::PathBuf;
use std::time::Duration;

use fc_proto::ttrpc::Code;
use fc_testbed::leftovers::wait_for_end;
use rustix::process::Signal;

use super::{process, signal, vmm};
use crate::daemon::{BOUND, Daemon, address, calls, client, create, ctx, failed, info, stop};
use crate::fixture::{Flavor, Instance, Setup, eventually};

/// A VM whose VMM dies is gone at once, with all that it had, and its name is free.
pub fn vmm_or_shim(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let _daemon = Daemon::start(setup, &on);
    calls(async {
        let vm = client(&address(&on)).await;
        vm.create_vm(ctx("ns"), &create("dies"))
            .await
            .expect("CreateVM");
        let shim = process(&on, "containerd-shim-aws-firecracker");
        signal(vmm(&on, "ns#dies"), Signal::KILL);
        wait_for_end(shim, BOUND);
        assert!(on.vm_dirs().is_empty(), "{:?}", on.vm_dirs());
        let gone = vm.get_vm_info(ctx("ns"), &info("dies")).await;
        assert_eq!(failed(gone).0, Code::NOT_FOUND);
        let gone = vm.stop_vm(ctx("ns"), &stop("dies")).await;
        assert_eq!(failed(gone).0, Code::NOT_FOUND);

        // A shim that is killed, which cannot clean up: the daemon does.
        vm.create_vm(ctx("ns"), &create("dies"))
            .await
            .expect("the name is free");
        let shim = process(&on, "containerd-shim-aws-firecracker");
        let vmm = vmm(&on, "ns#dies");
        signal(shim, Signal::KILL);
        // Its VMM can be gone first, and a call that it still takes is lost, not refused.
        wait_for_end(shim, BOUND);
        wait_for_end(vmm, BOUND);
        let gone = vm.get_vm_info(ctx("ns"), &info("dies")).await;
        assert_eq!(failed(gone).0, Code::NOT_FOUND);
        vm.create_vm(ctx("ns"), &create("dies"))
            .await
            .expect("the name is free");
        vm.stop_vm(ctx("ns"), &stop("dies")).await.expect("StopVM");
    });
}

/// The daemon is killed while a VM boots, while a task runs, and while a VM is stopped.
pub fn daemon(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let daemon = Daemon::start(setup, &on);
    on.run_detached(&[], "task", &["/bin/sleep", "600"]);
    calls(async {
        let vm = client(&address(&on)).await;
        let request = create("booting");
        let creating = vm.create_vm(ctx("ns"), &request);
        tokio::pin!(creating);
        let dir = on.layout.shim_base().join("ns#booting");
        tokio::select! {
            answer = &mut creating => panic!("before its VMM ran: {answer:?}"),
            () = appears(dir.join("firecracker.sock")) => {}
        }
        drop(daemon);
        creating.await.expect_err("the connection broke");
        let daemon = Daemon::start(setup, &on);
        let vm = client(&address(&on)).await;
        let again = vm.create_vm(ctx("ns"), &request).await;
        assert_eq!(failed(again).0, Code::ALREADY_EXISTS, "it boots on");
        vm.get_vm_info(ctx("ns"), &info("booting"))
            .await
            .expect("it runs");

        let request = stop("booting");
        let stopping = vm.stop_vm(ctx("ns"), &request);
        tokio::pin!(stopping);
        // Sent, at least: a message to the daemon is written before its answer is waited for.
        tokio::select! {
            biased;
            _ = &mut stopping => {}
            () = tokio::task::yield_now() => drop(daemon),
        }
        let _daemon = Daemon::start(setup, &on);
        let vm = client(&address(&on)).await;
        let again = vm.stop_vm(ctx("ns"), &request).await;
        if let Err(error) = again {
            assert_eq!(failed::<()>(Err(error)).0, Code::NOT_FOUND);
        }
        // The first one may still be removing it: there is no such VM any more, then.
        assert!(eventually(|| !dir.exists()));
        // The task did not notice.
        let exec = [
            "task",
            "exec",
            "--exec-id",
            "e",
            "task",
            "/bin/echo",
            "here",
        ];
        assert_eq!(on.ctr(&exec).expect(0).text(), "here\n");
        on.remove("task");
        crate::lifecycle::expect_gone(&on);
    });
}

/// Waits until a file is there.
async fn appears(path: PathBuf) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// containerd is killed while the daemon starts a VM and stops another one.
pub fn containerd(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let _daemon = Daemon::start(setup, &on);
    let socket = address(&on);
    let (containerd, layout) = (on.containerd, on.layout);
    let restarted = calls(async {
        let vm = client(&socket).await;
        vm.create_vm(ctx("ns"), &create("first"))
            .await
            .expect("CreateVM");
        let (starting, stopping) = (create("second"), stop("first"));
        let restart = tokio::task::spawn_blocking(move || {
            containerd.crash_and_restart().expect("containerd")
        });
        let (created, stopped, containerd) = tokio::join!(
            vm.create_vm(ctx("ns"), &starting),
            vm.stop_vm(ctx("ns"), &stopping),
            restart
        );
        created.expect("CreateVM");
        stopped.expect("StopVM");
        vm.stop_vm(ctx("ns"), &stop("second"))
            .await
            .expect("StopVM");
        containerd.expect("restarted")
    });
    let on = Instance {
        containerd: restarted,
        layout,
    };
    on.run(&[], "after", &["/bin/true"]).expect(0);
    crate::lifecycle::expect_gone(&on);
}
