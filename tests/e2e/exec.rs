//! `ctr task exec`, `ps`, `kill`, `ls`, `pause`, on a running container.

use std::io::Write as _;
use std::process::Stdio;

use crate::OnInstance;
use crate::fixture::Instance;
use crate::run::{in_terminal, is_terminal};

/// Run with every containerd.
pub const SMOKE: &[(&str, OnInstance)] = &[("exec::basics", basics)];
/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] = &[];

const SLEEP: [&str; 2] = ["/bin/sleep", "600"];

/// One VM for everything that only needs a running container.
fn basics(on: &Instance) {
    on.run_detached(&[], "basics", &SLEEP);
    exec_output_and_code(on);
    exec_stdin_ends(on);
    exec_terminal(on);
    exec_eight_mib(on);
    exec_missing_program(on);
    listed(on);
    paused(on);
    metrics(on);
    killed(on);
}

fn exec(on: &Instance, options: &[&str], id: &str, command: &[&str]) -> std::process::Command {
    let mut ctr = on.containerd.ctr();
    ctr.args(["task", "exec", "--exec-id", id])
        .args(options)
        .arg("basics")
        .args(command)
        .stdin(Stdio::null());
    ctr
}

fn exec_output_and_code(on: &Instance) {
    let ctr = exec(
        on,
        &[],
        "e1",
        &["/bin/sh", "-c", "echo out; echo err >&2; exit 5"],
    );
    let done = crate::fixture::finish(ctr).expect(5);
    assert_eq!(done.text(), "out\n");
    assert_eq!(done.stderr, "err\n");
    // The id of an ended process can be used again.
    let again = exec(on, &[], "e1", &["/bin/true"]);
    crate::fixture::finish(again).expect(0);
}

/// `echo | exec cat` must end ([peers: #775]).
fn exec_stdin_ends(on: &Instance) {
    for _ in 0..3 {
        let mut ctr = exec(on, &[], "e2", &["/bin/cat"]);
        let mut child = ctr
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ctr");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(b"hello\n").expect("write");
        drop(stdin);
        let output = child.wait_with_output().expect("ctr");
        assert_eq!(output.stdout, b"hello\n");
        assert!(output.status.success(), "{output:?}");
    }
}

fn exec_terminal(on: &Instance) {
    let ctr = exec(
        on,
        &["-t"],
        "e3",
        &["/bin/sh", "-c", "test -t 0 && echo terminal; exit 4"],
    );
    let done = in_terminal(&ctr);
    assert!(is_terminal(&done), "{done:?}");
    done.expect(4);
}

fn exec_eight_mib(on: &Instance) {
    let script = "dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' x";
    let ctr = exec(on, &[], "e4", &["/bin/sh", "-c", script]);
    let done = crate::fixture::finish(ctr).expect(0);
    assert_eq!(done.stdout.len(), 8 << 20);
}

fn exec_missing_program(on: &Instance) {
    let ctr = exec(on, &[], "e5", &["/no/such/program"]);
    let done = crate::fixture::finish(ctr);
    assert_ne!(done.code, 0);
    assert!(done.stderr.contains("/no/such/program"), "{}", done.stderr);
}

fn listed(on: &Instance) {
    let list = on.ctr(&["task", "ls"]).expect(0).text();
    let line = list
        .lines()
        .find(|l| l.starts_with("basics "))
        .unwrap_or_else(|| panic!("not listed: {list}"));
    let fields: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(fields[2], "RUNNING", "{line}");
    // The pid is the VMM's, on the host.
    let cmdline = std::fs::read_to_string(format!("/proc/{}/cmdline", fields[1]));
    let cmdline = cmdline.expect("a process of the host");
    assert!(cmdline.contains("firecracker"), "{cmdline}");
    let processes = on.ctr(&["task", "ps", "basics"]).expect(0).text();
    assert!(processes.lines().count() >= 2, "{processes}");
}

fn paused(on: &Instance) {
    on.ctr(&["task", "pause", "basics"]).expect(0);
    let list = on.ctr(&["task", "ls"]).expect(0).text();
    assert!(list.contains("PAUSED"), "{list}");
    on.ctr(&["task", "resume", "basics"]).expect(0);
    crate::fixture::finish(exec(on, &[], "e6", &["/bin/true"])).expect(0);
}

fn metrics(on: &Instance) {
    let text = on.ctr(&["task", "metrics", "basics"]).expect(0).text();
    assert!(text.contains("memory"), "{text}");
}

fn killed(on: &Instance) {
    on.ctr(&["task", "kill", "-s", "SIGKILL", "basics"])
        .expect(0);
    let removed = on.ctr(&["task", "rm", "-f", "basics"]);
    assert!(
        removed.code == 0 || removed.code == 137,
        "{}: {}",
        removed.code,
        removed.stderr
    );
    on.ctr(&["container", "rm", "basics"]).expect(0);
}
