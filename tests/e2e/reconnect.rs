//! A connection to the agent that breaks is made again, and nothing is lost with it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::OnSetup;
use crate::daemon::BOUND;
use crate::fixture::{Flavor, Instance, Setup, lines_of};

/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnSetup)] = &[("reconnect::nothing_is_lost", nothing_is_lost)];

fn nothing_is_lost(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let mut events = on.containerd.ctr();
    let mut events = events
        .arg("events")
        .stdout(Stdio::piped())
        .spawn()
        .expect("ctr events");
    let lines = lines_of(&mut events);
    subscribed(&on, &lines);

    let script = "echo ready; exec sleep 600";
    let mut run = on.run_command(&["--rm"], "cut", &["/bin/sh", "-c", script]);
    let mut run = run.stdout(Stdio::piped()).spawn().expect("ctr run");
    let output = lines_of(&mut run);
    assert_eq!(output.recv_timeout(BOUND).expect("output"), "ready");

    for round in ["one", "two"] {
        cut(&on);
        // What is asked now waits for the next connection.
        let exec = [
            "task",
            "exec",
            "--exec-id",
            round,
            "cut",
            "/bin/echo",
            round,
        ];
        assert_eq!(on.ctr(&exec).expect(0).text().trim(), round);
    }
    cut(&on);
    on.ctr(&["task", "kill", "-s", "SIGKILL", "cut"]).expect(0);
    let status = run.wait().expect("ctr run ends");
    assert_eq!(status.code(), Some(128 + 9), "{}", on.log());

    let mut seen: Vec<String> = Vec::new();
    // The container's own deletion names no exec.
    let last = |line: &String| of(line, "/tasks/delete") && !line.contains("\"id\":");
    while !seen.iter().any(last) {
        seen.push(lines.recv_timeout(BOUND).expect("the task's deletion"));
    }
    events.kill().expect("ctr events ends");
    events.wait().expect("ctr events ends");
    let topics = [
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "delete",
    ];
    let counts = topics.map(|topic| {
        let topic = format!("/tasks/{topic}");
        seen.iter().filter(|line| of(line, &topic)).count()
    });
    // A container and two execs.
    assert_eq!(counts, [1, 1, 2, 2, 3, 3], "{seen:#?}");
}

/// Waits until `ctr events` gets events. It does not say when; something happens until it shows it.
fn subscribed(on: &Instance, lines: &Receiver<String>) {
    let begin = Instant::now();
    for round in 0.. {
        let label = format!("round={round}");
        on.ctr(&["namespaces", "label", "default", &label])
            .expect(0);
        if lines.recv_timeout(Duration::from_millis(100)).is_ok() {
            return;
        }
        assert!(begin.elapsed() < BOUND, "ctr events shows nothing");
    }
}

/// Whether a line of `ctr events` is about our container.
fn of(line: &str, topic: &str) -> bool {
    line.split_whitespace().any(|word| word == topic) && line.contains("\"cut\"")
}

/// Breaks the connection between the only VM's shim and its agent.
fn cut(on: &Instance) {
    let [vm] = &on.vm_dirs()[..] else {
        panic!("one VM, not {:?}", on.vm_dirs());
    };
    let holder = std::fs::read_to_string(vm.join("lock")).expect("lock file");
    let pid = holder.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.expect("the shim's process id");
    let shim = pidfd_open(pid, PidfdFlags::empty()).expect("the shim's pidfd");
    let mut cut = 0;
    for entry in
        std::fs::read_dir(format!("/proc/{pid}/fd", pid = pid.as_raw_nonzero())).expect("fds")
    {
        let fd = entry
            .expect("fd")
            .file_name()
            .into_string()
            .expect("a number");
        let fd = fd.parse().expect("a number");
        let Ok(fd) = pidfd_getfd(&shim, fd, PidfdGetfdFlags::empty()) else {
            continue;
        };
        if is_agent(&fd) {
            // The shim's socket too: it is the same.
            UnixStream::from(fd)
                .shutdown(std::net::Shutdown::Both)
                .expect("shutdown");
            cut += 1;
        }
    }
    assert!(cut > 0, "the shim has a connection to its agent");
}

/// Whether this is a connection to the VMM's vsock socket.
fn is_agent(fd: &OwnedFd) -> bool {
    let Ok(socket) = fd.try_clone().map(UnixStream::from) else {
        return false;
    };
    let peer = socket.peer_addr();
    peer.is_ok_and(|peer| {
        peer.as_pathname().and_then(Path::file_name) == Some("firecracker.vsock".as_ref())
    })
}
