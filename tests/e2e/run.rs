//! `ctr run`: exit codes, streams, signals, VM size.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::OnInstance;
use crate::daemon::BOUND;
use crate::fixture::{Instance, finish, lines_of};

/// Run with every containerd.
pub const SMOKE: &[(&str, OnInstance)] = &[
    ("run::output_and_exit_code", output_and_exit_code),
    ("run::terminal", terminal),
    ("run::detached_then_attached", detached_then_attached),
];
/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnInstance)] = &[
    ("run::eight_mib_then_exit", eight_mib_then_exit),
    ("run::output_is_read_late", output_is_read_late),
    (
        "run::stdin_reaches_the_container",
        stdin_reaches_the_container,
    ),
    (
        "run::signals_reach_the_container",
        signals_reach_the_container,
    ),
    ("run::each_container_has_its_own_kernel", own_kernel),
    ("run::memory_limit_sizes_the_vm", memory_limit_sizes_the_vm),
    ("run::annotations_size_the_vm", annotations_size_the_vm),
    ("run::missing_program", missing_program),
];

fn output_and_exit_code(on: &Instance) {
    let done = on
        .run(
            &[],
            "exit",
            &["/bin/sh", "-c", "echo out; echo err >&2; exit 7"],
        )
        .expect(7);
    assert_eq!(done.text(), "out\n");
    assert_eq!(done.stderr, "err\n");
    on.run(&[], "exit", &["/bin/true"]).expect(0);
}

fn eight_mib_then_exit(on: &Instance) {
    let script = "dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' o; \
                  dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' e >&2; exit 3";
    let done = on
        .run(&[], "eight-mib", &["/bin/sh", "-c", script])
        .expect(3);
    assert_eq!(done.stdout.len(), 8 << 20);
    assert!(done.stdout.iter().all(|b| *b == b'o'), "stdout is mixed up");
    assert_eq!(done.stderr.len(), 8 << 20);
    assert!(done.stderr.bytes().all(|b| b == b'e'), "stderr is mixed up");
}

/// What is on its way when the process ends fits the buffers in between, and ctr 1.6.20 reads nothing more once it
/// knows of the end.
fn output_is_read_late(on: &Instance) {
    let script = "dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' o; exit 3";
    let mut ctr = on.run_command(&["--rm"], "late", &["/bin/sh", "-c", script]);
    let mut child = ctr.stdout(Stdio::piped()).spawn().expect("ctr");
    let mut stdout = child.stdout.take().expect("piped");
    let mut most = vec![0; (8 << 20) - (256 << 10)];
    stdout.read_exact(&mut most).expect("output");
    std::thread::sleep(Duration::from_secs(2));
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).expect("output");
    assert_eq!(child.wait().expect("ctr").code(), Some(3));
    assert_eq!(most.len() + rest.len(), 8 << 20);
    assert!(most.iter().chain(&rest).all(|b| *b == b'o'), "mixed up");
}

fn stdin_reaches_the_container(on: &Instance) {
    let mut ctr = on.run_command(&["--rm"], "stdin", &["/bin/sh", "-c", "md5sum; echo end"]);
    let mut child = ctr
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ctr");
    let mut stdin = child.stdin.take().expect("piped");
    let line = b"0123456789abcde\n";
    for _ in 0..(4 << 20) / line.len() {
        stdin.write_all(line).expect("write to the container");
    }
    drop(stdin);
    let output = child.wait_with_output().expect("ctr");
    assert!(output.status.success(), "{output:?}");
    let mut md5 = std::process::Command::new("md5sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("md5sum");
    let mut input = md5.stdin.take().expect("piped");
    for _ in 0..(4 << 20) / line.len() {
        input.write_all(line).expect("write to md5sum");
    }
    drop(input);
    let mut expected = md5.wait_with_output().expect("md5sum").stdout;
    expected.extend(b"end\n");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&expected)
    );
}

fn signals_reach_the_container(on: &Instance) {
    for (signal, code) in [("TERM", 42), ("INT", 43)] {
        let script = format!(
            "trap 'echo passed on' WINCH; trap 'echo got {signal}; exit {code}' {signal}; \
             echo ready; while :; do sleep 0.1; done"
        );
        let id = format!("signal-{}", signal.to_lowercase());
        let mut ctr = on.run_command(&["--rm"], &id, &["/bin/sh", "-c", &script]);
        let child = ctr.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("ctr");
        let lines = lines_of(&mut child);
        assert_eq!(lines.recv_timeout(BOUND).expect("a line"), "ready");
        until_passed_on(child.id(), &lines);
        kill(child.id(), signal);
        let output = child.wait_with_output().expect("ctr");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        let said = lines.iter().filter(|line| line != "passed on");
        assert_eq!(said.collect::<Vec<_>>(), [format!("got {signal}")]);
    }
}

/// Waits until `ctr run` passes signals on to its container, which says so. It begins with that some time after the
/// container has begun to speak, and until then most signals end it; this one does not.
fn until_passed_on(ctr: u32, lines: &Receiver<String>) {
    let begin = Instant::now();
    loop {
        kill(ctr, "WINCH");
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => return assert_eq!(line, "passed on"),
            Err(error) => assert_eq!(error, RecvTimeoutError::Timeout, "ctr has ended"),
        }
        assert!(begin.elapsed() < BOUND, "ctr passes no signal on");
    }
}

fn kill(pid: u32, signal: &str) {
    let mut kill = Command::new("kill");
    kill.args([format!("-{signal}"), pid.to_string()]);
    finish(kill).expect(0);
}

fn terminal(on: &Instance) {
    let ctr = on.run_command(
        &["--rm", "-t"],
        "terminal",
        &[
            "/bin/sh",
            "-c",
            "test -t 0 && test -t 1 && echo terminal; tty; exit 9",
        ],
    );
    let done = in_terminal(&ctr);
    assert!(is_terminal(&done), "{done:?}");
    done.expect(9);
}

/// Runs a `ctr` command with a terminal of its own, by way of script(1).
pub fn in_terminal(ctr: &std::process::Command) -> crate::fixture::Finished {
    let words: Vec<String> = std::iter::once(ctr.get_program())
        .chain(ctr.get_args())
        .map(|w| format!("'{}'", w.to_string_lossy().replace('\'', r"'\''")))
        .collect();
    let mut script = std::process::Command::new("script");
    script
        .args(["-qec", &words.join(" "), "/dev/null"])
        .stdin(Stdio::null());
    finish(script)
}

/// Whether the command said `terminal`. script(1) may type a zero byte, which the terminals in
/// between echo anywhere.
pub fn is_terminal(done: &crate::fixture::Finished) -> bool {
    done.text().contains("terminal")
}

fn detached_then_attached(on: &Instance) {
    let script = "i=0; while [ $i -lt 600 ]; do echo tick; sleep 0.1; i=$((i+1)); done";
    on.run_detached(&[], "attach", &["/bin/sh", "-c", script]);
    let mut attach = on.containerd.ctr();
    attach
        .args(["task", "attach", "attach"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = attach.spawn().expect("ctr attach");
    let mut first = [0; 5];
    let stdout = child.stdout.as_mut().expect("piped");
    std::io::Read::read_exact(stdout, &mut first).expect("output after attaching");
    assert_eq!(&first, b"tick\n");
    on.ctr(&["task", "kill", "-s", "SIGKILL", "attach"])
        .expect(0);
    let output = child.wait_with_output().expect("ctr attach");
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    on.remove("attach");
}

fn own_kernel(on: &Instance) {
    let boot_id = ["/bin/cat", "/proc/sys/kernel/random/boot_id"];
    let first = on.run(&[], "kernel-1", &boot_id).expect(0).text();
    let second = on.run(&[], "kernel-2", &boot_id).expect(0).text();
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
    assert_ne!(first, second);
    assert_ne!(first, host);
}

const MEM_TOTAL: [&str; 3] = [
    "/bin/sh",
    "-c",
    "awk '/MemTotal/ {print int($2/1024)}' /proc/meminfo; nproc",
];

fn memory_limit_sizes_the_vm(on: &Instance) {
    let limit = (512 << 20).to_string();
    let done = on
        .run(&["--memory-limit", &limit], "memory", &MEM_TOTAL)
        .expect(0);
    let text = done.text();
    let mib: u32 = text
        .lines()
        .next()
        .and_then(|l| l.parse().ok())
        .expect("MiB");
    assert!(mib > 512, "the VM has {mib} MiB for a container of 512");
}

fn annotations_size_the_vm(on: &Instance) {
    let done = on
        .run(
            &[
                "--annotation",
                "aws.firecracker.vm.memory_mib=384",
                "--annotation",
                "aws.firecracker.vm.vcpus=2",
            ],
            "annotated",
            &MEM_TOTAL,
        )
        .expect(0);
    let text = done.text();
    let numbers: Vec<u32> = text.lines().filter_map(|l| l.parse().ok()).collect();
    assert!((300..=384).contains(&numbers[0]), "{text}");
    assert_eq!(numbers[1], 2, "{text}");
}

fn missing_program(on: &Instance) {
    let done = on.run(&[], "missing-program", &["/no/such/program"]);
    assert_ne!(done.code, 0);
    assert!(done.stderr.contains("/no/such/program"), "{}", done.stderr);
    // The id is free again at once.
    on.run(&[], "missing-program", &["/bin/true"]).expect(0);
}
