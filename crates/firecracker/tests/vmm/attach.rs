//! Processes that somebody else starts, here a shell in the place of an OCI runtime.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::process::{BOUND, INFO, is_gone, server, signal};
use fc_client::{LaunchError, ProcessExit, StartedVmm, Vmm};

/// Has a shell start another with the script `vmm`, and do `then` afterwards. It is told when the pid file is there.
fn start(dir: &Path, vmm: &str, then: &str) -> (StartedVmm, Child) {
    let (stdout, their_stdout) = std::io::pipe().expect("a pipe");
    let (stderr, their_stderr) = std::io::pipe().expect("a pipe");
    let (told, tell) = std::io::pipe().expect("a pipe");
    let runtime = Command::new("sh")
        .arg("-c")
        .arg(format!("sh -c '{vmm}' <&- & echo $! >&0; exec <&-; {then}"))
        .current_dir(dir)
        .stdin(tell)
        .stdout(their_stdout)
        .stderr(their_stderr)
        .spawn()
        .expect("a shell");
    let pid = std::io::read_to_string(told).expect("the process' id");
    let pid = pid.trim().parse().expect("a number");
    let mut started = StartedVmm::new("/jailed/vmm", pid, dir.join("firecracker.sock"));
    started.stdout = Some(OwnedFd::from(stdout));
    started.stderr = Some(OwnedFd::from(stderr));
    (started, runtime)
}

/// Something that a script can wait for.
fn make_fifo(dir: &Path) -> PathBuf {
    let fifo = dir.join("fifo");
    let made = Command::new("mkfifo").arg(&fifo).status();
    assert!(made.expect("mkfifo").success());
    fifo
}

/// Lets this process inherit orphans, as one that starts VMMs through an OCI runtime does.
fn become_subreaper() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("a subreaper");
}

#[tokio::test]
async fn an_orphan_is_taken_over() {
    become_subreaper();
    let dir = tempfile::tempdir().expect("a directory");
    let (started, mut runtime) = start(dir.path(), "echo hello; exec sleep 60", "exit 0");
    let pid = started.pid;
    assert!(runtime.wait().expect("the runtime's end").success());
    // Its socket comes later.
    let serve = async { server(dir.path(), INFO) };
    let (vmm, server) = tokio::join!(Vmm::attach(started), serve);
    let vmm = vmm.expect("a VMM");
    assert_eq!((vmm.pid(), vmm.end()), (pid, None));
    assert_eq!(vmm.version().to_string(), "1.15.0");
    vmm.client().describe_instance().await.expect("an answer");
    drop(server);

    vmm.console_tail().longer_than(0).await;
    let end = vmm.stop(BOUND).await.expect("its end");
    assert_eq!(signal(&end), Some(15));
    assert_eq!(end.last_output, ["hello"]);
    assert!(is_gone(pid), "a zombie is left");
}

#[tokio::test]
async fn the_end_of_somebody_elses_child_is_seen() {
    let dir = tempfile::tempdir().expect("a directory");
    let fifo = make_fifo(dir.path());
    let (started, mut runtime) = start(
        dir.path(),
        "read -r line < fifo; echo no more >&2; exit 7",
        "wait",
    );
    let _server = server(dir.path(), INFO);
    let vmm = Vmm::attach(started).await.expect("a VMM");
    std::fs::write(&fifo, "go on\n").expect("the sign");
    let end = vmm.exited().await;
    assert_eq!(end.status, ProcessExit::Unknown);
    assert_eq!(
        end.to_string(),
        "the VMM ended with an unknown exit status; its last output:\n  no more"
    );
    assert!(runtime.wait().expect("the runtime's end").success());
}

#[tokio::test]
async fn what_cannot_be_attached_to_is_ended() {
    become_subreaper();
    let dir = tempfile::tempdir().expect("a directory");

    let fifo = make_fifo(dir.path());
    let script = "read -r line < fifo; echo no kernel >&2; exit 3";
    let (started, mut runtime) = start(dir.path(), script, "exit 0");
    runtime.wait().expect("the runtime's end");
    // An orphan now: nobody else can reap it.
    std::fs::write(&fifo, "go on\n").expect("the sign");
    let error = Vmm::attach(started).await.expect_err("it exits");
    let message = error.to_string();
    assert!(
        message.starts_with("The VMM /jailed/vmm did not start: the VMM ended with exit status: 3")
            && message.ends_with("no kernel"),
        "{message}"
    );

    let (mut started, mut runtime) = start(dir.path(), "exec sleep 60", "exit 0");
    runtime.wait().expect("the runtime's end");
    let pid = started.pid;
    started.ready_bound = Duration::from_millis(100);
    let error = Vmm::attach(started).await.expect_err("no API");
    assert!(matches!(error, LaunchError::NotReady { .. }), "{error:?}");
    assert!(is_gone(pid));

    let (mut started, mut runtime) = start(dir.path(), "exec sleep 60", "exit 0");
    runtime.wait().expect("the runtime's end");
    let pid = started.pid;
    started.api_socket = dir.path().join("missing/firecracker.sock");
    let error = Vmm::attach(started).await.expect_err("no directory");
    assert!(matches!(error, LaunchError::Directory { .. }), "{error:?}");
    assert!(is_gone(pid));

    let mut child = Command::new("true")
        .stdin(Stdio::null())
        .spawn()
        .expect("a child");
    let pid = child.id();
    child.wait().expect("its end");
    let gone = StartedVmm::new("/jailed/vmm", pid, dir.path().join("firecracker.sock"));
    let error = Vmm::attach(gone).await.expect_err("nobody");
    assert_eq!(
        error.to_string(),
        format!("The VMM /jailed/vmm (process {pid}) is gone already")
    );
}
