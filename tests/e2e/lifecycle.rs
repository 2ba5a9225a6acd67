//! What happens around a container: repetition, crashes, restarts.

use std::process::Stdio;
use std::time::Instant;

use crate::OnSetup;
use crate::daemon::BOUND;
use crate::fixture::{Flavor, Instance, Setup, eventually};
use crate::shared_vm::stop_vm;

/// Each starts an instance of its own.
pub const TESTS: &[(&str, OnSetup)] = &[
    ("lifecycle::ten_runs_leave_nothing", ten_runs_leave_nothing),
    ("lifecycle::killed_vmm_is_reported", killed_vmm_is_reported),
    (
        "lifecycle::killed_shim_is_cleaned_up",
        killed_shim_is_cleaned_up,
    ),
    ("lifecycle::containerd_restart", containerd_restart),
    ("lifecycle::long_names", long_names),
];

fn ten_runs_leave_nothing(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    for i in 0..10 {
        let done = on
            .run(&[], "again", &["/bin/echo", &i.to_string()])
            .expect(0);
        assert_eq!(done.text(), format!("{i}\n"));
    }
    expect_gone(&on);
}

/// No VM directory and no VM process of this instance.
#[track_caller]
pub fn expect_gone(on: &Instance) {
    let scope = on.scope();
    let gone = scope.wait_for_processes(BOUND);
    assert!(gone, "{:?}", scope.processes());
    // containerd cleans up after a dead shim in the background.
    let gone = eventually(|| on.vm_dirs().is_empty());
    assert!(gone, "{:?}\n{}", on.vm_dirs(), on.log());
}

fn processes_of(on: &Instance, program: &str) -> Vec<i32> {
    let all = on.scope().processes();
    let named = all.into_iter().filter(|process| process.name == program);
    named.map(|process| process.pid).collect()
}

#[track_caller]
fn kill_all(pids: &[i32]) {
    assert!(!pids.is_empty(), "nothing to kill");
    for pid in pids {
        let pid = rustix::process::Pid::from_raw(*pid).expect("pid");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    }
}

/// Starts a container in the foreground and waits until it has said `ready`.
fn running(on: &Instance, id: &str) -> std::process::Child {
    let mut ctr = on.run_command(
        &["--rm"],
        id,
        &["/bin/sh", "-c", "echo ready; exec sleep 600"],
    );
    let mut child = ctr
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ctr");
    let mut first = [0; 6];
    let stdout = child.stdout.as_mut().expect("piped");
    std::io::Read::read_exact(stdout, &mut first).expect("the container says ready");
    child
}

fn killed_vmm_is_reported(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let child = running(&on, "vmm-killed");
    let mut vmms = processes_of(&on, "firecracker-tcg");
    vmms.extend(processes_of(&on, "firecracker"));
    kill_all(&vmms);
    let output = child.wait_with_output().expect("ctr");
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    expect_gone(&on);
    // The id can be used again.
    on.run(&[], "vmm-killed", &["/bin/true"]).expect(0);
}

fn killed_shim_is_cleaned_up(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let child = running(&on, "shim-killed");
    kill_all(&processes_of(&on, "containerd-shim-aws-firecracker"));
    let output = child.wait_with_output().expect("ctr");
    assert_ne!(output.status.code(), Some(0), "{output:?}");
    on.remove("shim-killed");
    expect_gone(&on);
    on.run(&[], "shim-killed", &["/bin/true"]).expect(0);
}

/// VMs go on while containerd is killed and started again.
fn containerd_restart(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    on.run_detached(
        &[],
        "survivor",
        &[
            "/bin/sh",
            "-c",
            "trap 'exit 6' TERM; while :; do sleep 0.1; done",
        ],
    );
    let Instance { containerd, layout } = on;
    let containerd = containerd.crash_and_restart().expect("containerd restarts");
    let on = Instance { containerd, layout };
    let list = on.ctr(&["task", "ls"]).expect(0).text();
    assert!(
        list.lines()
            .any(|l| l.starts_with("survivor ") && l.contains("RUNNING")),
        "{list}\n{}",
        on.log()
    );
    let mut exec = on.containerd.ctr();
    exec.args([
        "task",
        "exec",
        "--exec-id",
        "e",
        "survivor",
        "/bin/echo",
        "alive",
    ])
    .stdin(Stdio::null());
    let done = crate::fixture::finish(exec).expect(0);
    assert_eq!(done.text(), "alive\n");
    on.ctr(&["task", "kill", "-s", "SIGTERM", "survivor"])
        .expect(0);
    // ctr has no command that waits; a running task refuses to be removed.
    let deadline = Instant::now() + BOUND;
    let removed = loop {
        let removed = on.ctr(&["task", "rm", "survivor"]);
        if !removed.stderr.contains("must be stopped") || Instant::now() > deadline {
            break removed;
        }
    };
    // Some versions of ctr end with the task's code, others only say it.
    assert!(
        removed.code == 6 || removed.stderr.contains("exit code 6"),
        "{removed:?}"
    );
    on.ctr(&["container", "rm", "survivor"]).expect(0);
    expect_gone(&on);
}

/// Socket paths are limited to 108 bytes; names of 76 characters must work all the same.
fn long_names(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let id = "i".repeat(76);
    let vm = "v".repeat(76);
    let annotation = format!("aws.firecracker.vm.id={vm}");
    on.run(&[], &id, &["/bin/true"]).expect(0);
    // containerd waits 3 s for the end of a VM, and `ctr` no longer.
    expect_gone(&on);
    on.run_detached(&["--annotation", &annotation], &id, &["/bin/sleep", "600"]);
    assert_eq!(on.vm_dirs().len(), 1);
    on.remove(&id);
    stop_vm(&on, &vm);
    expect_gone(&on);
}
