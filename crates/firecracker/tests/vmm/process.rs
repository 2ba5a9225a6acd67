//! Processes, with shell scripts in the place of a VMM: the API, where there is one, is served by the test.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::server::Server;
use fc_client::{
    ApiError, DEFAULT_BOUND, FifoDrain, LaunchError, StopError, Vmm, VmmCommand, VmmEnd,
};
use fc_test_host::write_program;

/// For what happens at once, unless something is wrong or the host is very busy.
pub const BOUND: Duration = Duration::from_secs(60);

/// A command whose program is the shell script `body`.
fn command(dir: &Path, body: &str) -> VmmCommand {
    let binary = dir.join("vmm");
    write_program(&binary, &format!("#!/bin/sh\n{body}\n"));
    VmmCommand::new(binary, "vm", dir)
}

pub fn server(dir: &Path, info: &'static str) -> Server {
    Server::start(&dir.join("firecracker.sock"), move |_| (200, info))
}

/// Launches `command` and, once its process runs, serves its API.
async fn launch(command: VmmCommand, info: &'static str) -> (Result<Vmm, LaunchError>, Server) {
    let dir = command.dir.clone();
    let serve = async {
        let started = dir.join("started");
        let deadline = Instant::now() + BOUND;
        while !started.exists() {
            assert!(Instant::now() < deadline, "the script did not start");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server(&dir, info)
    };
    tokio::join!(Vmm::launch(command), serve)
}

/// What a VMM says of itself before boot.
pub const INFO: &str =
    r#"{"app_name":"Firecracker","id":"vm","state":"Not started","vmm_version":"1.15.0"}"#;

/// The signal that ended a process.
pub fn signal(end: &VmmEnd) -> Option<i32> {
    end.status.status()?.signal()
}

pub fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_vmm_is_launched_and_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = "echo \"$@\"; pwd >&2; echo > started; exec sleep 60";
    let (vmm, server) = launch(command(dir.path(), script), INFO).await;
    let vmm = vmm.expect("a VMM");
    assert_eq!(vmm.version().to_string(), "1.15.0");
    assert_eq!(vmm.end(), None);
    let waiters = [vmm.exited(), vmm.exited()];
    let end = vmm.stop(BOUND).await.expect("its end");
    assert_eq!(signal(&end), Some(15));
    for waiter in waiters {
        assert_eq!(waiter.await, end);
    }
    assert_eq!(vmm.end().as_ref(), Some(&end));
    assert!(is_gone(vmm.pid()));
    drop(server);
    let error = vmm
        .client()
        .version()
        .await
        .expect_err("a call after the end");
    assert!(matches!(error, ApiError::VmmGone { .. }), "{error:?}");

    let mut output = end.last_output;
    output.sort();
    assert_eq!(output[0], "--api-sock firecracker.sock --id vm");
    assert_eq!(
        Path::new(&output[1]),
        dir.path().canonicalize().expect("the directory")
    );
}

#[tokio::test]
async fn a_deaf_vmm_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = "trap '' TERM; echo > started; while :; do sleep 0.05; done";
    let (vmm, _server) = launch(command(dir.path(), script), INFO).await;
    let vmm = vmm.expect("a VMM");
    let end = vmm.stop(Duration::from_millis(100)).await;
    assert_eq!(signal(&end.expect("its end")), Some(9));
}

/// A control group whose processes can be kept from running and from dying.
struct Freezer(PathBuf);

impl Freezer {
    fn new() -> Result<Self, String> {
        let path = format!("/sys/fs/cgroup/freezer/fc-client-{}", std::process::id());
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(Self(path.into())),
            Err(error) => Err(format!("no freezer control group (version 1): {error}")),
        }
    }

    fn set(&self, state: &str) {
        std::fs::write(self.0.join("freezer.state"), state).expect("the group's state");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set("THAWED");
        let deadline = Instant::now() + BOUND;
        // A process that ends leaves its group a moment later.
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[tokio::test]
async fn a_vmm_that_cannot_be_killed_is_reported() {
    let freezer = match Freezer::new() {
        Ok(freezer) => freezer,
        Err(why) => return println!("SKIPPED: {why}"),
    };
    let dir = tempfile::tempdir().expect("a directory");
    let procs = freezer.0.join("cgroup.procs");
    let script = format!(
        "trap '' TERM; echo $$ > {} && echo > started; exec sleep 60",
        procs.display()
    );
    let (vmm, _server) = launch(command(dir.path(), &script), INFO).await;
    let vmm = vmm.expect("a VMM");
    freezer.set("FROZEN");
    let start = Instant::now();
    let error = vmm.stop(Duration::from_millis(50)).await;
    assert_eq!(error, Err(StopError::Unkillable { pid: vmm.pid() }));
    assert!(start.elapsed() < BOUND);
    assert_eq!(vmm.end(), None);
    freezer.set("THAWED");
    assert_eq!(signal(&vmm.exited().await), Some(9));
}

#[tokio::test]
async fn dropping_kills_and_reaps() {
    let dir = tempfile::tempdir().expect("a directory");
    let (vmm, _server) = launch(command(dir.path(), "echo > started; exec sleep 60"), INFO).await;
    let vmm = vmm.expect("a VMM");
    let (pid, exited) = (vmm.pid(), vmm.exited());
    drop(vmm);
    assert!(is_gone(pid));
    assert_eq!(signal(&exited.await), Some(9));
}

#[tokio::test]
async fn a_vmm_that_dies_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = "i=0; while [ $i -lt 300 ]; do echo \"line $i\"; i=$((i+1)); done; \
                  printf '\\033[31mno kernel\\r\\n' >&2; exit 3";
    let start = Instant::now();
    let error = Vmm::launch(command(dir.path(), script))
        .await
        .expect_err("it exits");
    assert!(start.elapsed() < BOUND);
    let message = error.to_string();
    let LaunchError::Exited { end, .. } = error else {
        panic!("{message}")
    };
    assert_eq!(end.status.status().and_then(|s| s.code()), Some(3));
    assert_eq!(end.last_output.len(), 301);
    assert!(
        end.last_output.iter().any(|line| line == "no kernel"),
        "{end:?}"
    );
    assert!(
        message.contains("exit status: 3") && message.contains("\n  line 299"),
        "{message}"
    );
}

#[tokio::test]
async fn a_vmm_that_dies_during_a_call_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = FifoDrain::log(&dir.path().join("log.fifo")).expect("a FIFO");
    let script = "echo '2026 [vm:main:ERROR] bad guest' > log.fifo; echo > started; \
                  while [ ! -e die ]; do sleep 0.01; done; echo dying; kill -ABRT $$";
    let mut command = command(dir.path(), script);
    command.log = Some(log.shared_tail());
    let (vmm, server) = launch(command, INFO).await;
    let vmm = vmm.expect("a VMM");
    drop(server);
    std::fs::write(dir.path().join("die"), "").expect("the sign");
    let error = vmm.client().describe_instance().await.expect_err("it dies");
    let ApiError::VmmGone { end, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(signal(end), Some(6));
    assert_eq!(end.last_output, ["dying"]);
    assert_eq!(end.last_log, ["2026 [vm:main:ERROR] bad guest"]);
    assert!(
        error.to_string().starts_with(
            "The VMM was gone at GET / (VM not started): the VMM ended with signal: 6"
        )
    );
}

#[tokio::test]
async fn a_silent_vmm_is_given_up() {
    let mut bound = Duration::from_secs(1);
    // On a busy machine the time may be over before it says anything: once more, with more of it.
    while !given_up_after_hello(bound).await {
        bound *= 2;
        assert!(bound < BOUND, "it never said hello");
    }
}

/// Whether the VMM had said hello when it was given up.
async fn given_up_after_hello(bound: Duration) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = command(dir.path(), "echo $$ > pid; echo hello; exec sleep 60");
    command.ready_bound = bound;
    let error = Vmm::launch(command).await.expect_err("no API");
    assert!(matches!(error, LaunchError::NotReady { .. }), "{error:?}");
    let said = error.to_string().ends_with("its last output:\n  hello");
    if said {
        let pid = std::fs::read_to_string(dir.path().join("pid")).expect("its id");
        assert!(is_gone(pid.trim().parse().expect("a number")));
    }
    said
}

/// Its first answer may take as long as its start.
#[tokio::test]
async fn a_vmm_that_takes_connections_only_is_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = command(dir.path(), "exec sleep 60");
    command.ready_bound = DEFAULT_BOUND + Duration::from_millis(100);
    let serve = async { Server::start(&dir.path().join("firecracker.sock"), |_| (0, "")) };
    let (vmm, _server) = tokio::join!(Vmm::launch(command), serve);
    let error = vmm.expect_err("no answer");
    assert!(matches!(error, LaunchError::NotReady { .. }), "{error:?}");
}

#[tokio::test]
async fn an_old_vmm_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let info =
        r#"{"app_name":"Firecracker","id":"vm","state":"Not started","vmm_version":"1.4.1"}"#;
    let (vmm, _server) = launch(command(dir.path(), "echo > started; exec sleep 60"), info).await;
    let error = vmm.expect_err("too old");
    assert!(matches!(error, LaunchError::TooOld { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("\"1.4.1\", while at least 1.8.0"),
        "{error}"
    );
}

#[tokio::test]
async fn programs_that_do_not_run_are_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("text"), "#!/bin/sh\n").expect("a file");
    std::fs::set_permissions(path("text"), Permissions::from_mode(0o644)).expect("its mode");
    write_program(&path("garbage"), "\0garbage");
    write_program(&path("foreign"), "\x7fELF 0123456789abc\0\0");
    write_program(&path("script"), "#!/nonexistent\n");
    for (name, problem) in [
        ("missing", "does not exist"),
        ("text", "is not an executable file"),
        ("garbage", "is not a program for this machine"),
        ("foreign", "is not a program for this machine"),
        ("script", "interpreter"),
    ] {
        let binary = path(name);
        let error = Vmm::launch(VmmCommand::new(&binary, "vm", dir.path()))
            .await
            .expect_err(problem);
        let message = error.to_string();
        assert!(
            message.contains(problem) && message.contains("firecracker_binary_path"),
            "{message}"
        );
        assert!(message.contains(&binary.display().to_string()), "{message}");
    }
    let error = Vmm::launch(VmmCommand::new("true", "vm", "/nonexistent")).await;
    assert!(
        matches!(error, Err(LaunchError::Directory { .. })),
        "{error:?}"
    );
    std::fs::write(path("firecracker.sock"), "").expect("a file");
    let error = Vmm::launch(VmmCommand::new("true", "vm", dir.path())).await;
    assert!(
        matches!(error, Err(LaunchError::SocketExists { .. })),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_full_log_never_blocks_its_writer() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("metrics.fifo");
    let drain = FifoDrain::metrics(&path).expect("a FIFO");
    let again = FifoDrain::metrics(&path).expect_err("it exists");
    assert!(again.to_string().contains("metrics.fifo"), "{again}");
    let writer = tokio::task::spawn_blocking(move || {
        let line = format!("{}\n", "m".repeat(999));
        std::fs::write(&path, line.repeat(1000) + "{\"last\":1}\n")
    });
    writer.await.expect("the writer").expect("a megabyte");
    let tail = drain.tail();
    assert_eq!(tail.last().map(String::as_str), Some("{\"last\":1}"));
    assert!(tail.len() <= 66, "more than 64 KiB is kept");
}

/// Where [`launch_and_abort`] has its VMM; set only for the process that is to die.
const ABORT_DIR: &str = "FC_CLIENT_TEST_ABORT_DIR";

/// Not a test: what the child process of [`a_vmm_dies_with_its_parent`] does.
#[tokio::test]
#[ignore = "only for the child process of another test"]
async fn launch_and_abort() {
    let Some(dir) = std::env::var_os(ABORT_DIR) else {
        println!("SKIPPED: only for the child process of another test");
        return;
    };
    let script = "echo $$ > pid; echo > started; exec sleep 60";
    let (vmm, _server) = launch(command(Path::new(&dir), script), INFO).await;
    vmm.expect("a VMM");
    std::process::abort();
}

#[test]
fn a_vmm_dies_with_its_parent() {
    let dir = tempfile::tempdir().expect("a directory");
    let status = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["process::launch_and_abort", "--exact", "--ignored"])
        .env(ABORT_DIR, dir.path())
        .stdout(std::process::Stdio::null())
        .status();
    assert_eq!(status.expect("the child").signal(), Some(6));
    let pid = std::fs::read_to_string(dir.path().join("pid")).expect("the VMM's id");
    let stat = format!("/proc/{}/stat", pid.trim());
    let deadline = Instant::now() + BOUND;
    // Whoever inherited it may take its time to reap it: a zombie is dead too.
    while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the VMM outlived its parent");
        std::thread::sleep(Duration::from_millis(5));
    }
}
