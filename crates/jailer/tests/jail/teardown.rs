//! Whoever is killed at whatever moment: nothing stays.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use fc_jailer::{Jailer, StartError};
use fc_test_host::write_program;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::Test;
use crate::host::{Host, Runtime, block_on, open};

pub const TESTS: &[(&str, Test)] = &[
    ("teardown::the_vmm_is_killed", the_vmm_is_killed),
    (
        "teardown::close_kills_and_may_be_repeated",
        close_kills_and_may_be_repeated,
    ),
    ("teardown::the_runtime_is_killed", the_runtime_is_killed),
    (
        "teardown::the_runtime_leaves_a_mount",
        the_runtime_leaves_a_mount,
    ),
    ("teardown::the_start_is_given_up", the_start_is_given_up),
    ("teardown::the_owner_is_killed", the_owner_is_killed),
    (
        "teardown::the_owner_is_killed_as_it_cleans_up",
        the_owner_is_killed_as_it_cleans_up,
    ),
    (
        "teardown::the_owner_is_of_a_service",
        the_owner_is_of_a_service,
    ),
    ("teardown::the_vmm_does_not_start", the_vmm_does_not_start),
    (
        "teardown::failures_are_told_and_the_rest_is_done",
        failures_are_told_and_the_rest_is_done,
    ),
    (
        "teardown::all_failures_are_told_together",
        all_failures_are_told_together,
    ),
];

/// Its end is known at once, with its status.
fn the_vmm_is_killed(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let (jail, vmm, _) = host.start().await;
        let status = Command::new("kill")
            .args(["-9", &vmm.pid().to_string()])
            .status();
        assert!(status.unwrap().success());
        let bound = Duration::from_secs(60);
        let end = tokio::time::timeout(bound, vmm.exited()).await;
        let end = end.expect("nobody has to ask for it");
        let status = end.status.status().expect("it was adopted");
        assert_eq!(status.signal(), Some(9));
        assert!(end.last_output.iter().any(|line| line == "ready"));
        assert!(jail.close().await.is_empty());
        host.assert_clean();
    });
}

fn close_kills_and_may_be_repeated(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let (jail, vmm, mut orders) = host.start().await;
        let one = host.base.path().join("one");
        fs::write(&one, "one").unwrap();
        let name = jail
            .exposer()
            .expose("one", &open(&one), true)
            .await
            .unwrap();
        orders.give(&format!("read {name}")).unwrap();
        for _ in 0..2 {
            let errors = jail.close().await;
            assert!(errors.is_empty(), "{errors:?}");
        }
        vmm.exited().await;
        assert!(fc_jailer::undo(&host.dir).is_empty());
        assert!(one.exists());
        host.assert_clean();
    });
}

/// A runtime that is killed when it has run for some time, at moments spread over a whole start.
fn the_runtime_is_killed(runtime: &Runtime) {
    block_on(async {
        for milliseconds in [1, 5, 10, 15, 20, 25, 30, 40, 60] {
            let mut host = Host::new(runtime);
            let seconds = format!("0.{milliseconds:03}");
            let script = format!(
                "#!/bin/sh\ncase \"$*\" in *' run '*) exec timeout -s KILL {seconds} {0} \"$@\";; esac\nexec {0} \"$@\"\n",
                host.runc.display()
            );
            let wrapper = host.base.path().join("killed-runc");
            write_program(&wrapper, &script);
            host.runc = wrapper;
            let jail = host.prepare().await;
            // It may have been fast enough.
            drop(jail.start(fc_jailer::Start::default()).await);
            let errors = jail.close().await;
            assert!(errors.is_empty(), "{milliseconds}: {errors:?}");
            host.assert_clean();
        }
    });
}

/// One that is killed while its own program is mounted in its state, as runc 1.1 does for a moment.
fn the_runtime_leaves_a_mount(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let jail = host.prepare().await;
        let left = host.dir.join("runc/vm");
        fs::create_dir(&left).unwrap();
        let left = left.join("runc.left");
        fs::write(&left, "").unwrap();
        mount_bind(&host.vmm, &left).unwrap();
        let errors = jail.close().await;
        assert!(errors.is_empty(), "{errors:?}");
        assert!(host.vmm.exists());
        host.assert_clean();
    });
}

/// The future of a start is dropped, as by a time limit.
fn the_start_is_given_up(runtime: &Runtime) {
    block_on(async {
        for milliseconds in [1, 10, 20, 30, 50, 100] {
            let host = Host::new(runtime);
            let jail = host.prepare().await;
            let bound = Duration::from_millis(milliseconds);
            drop(tokio::time::timeout(bound, jail.start(fc_jailer::Start::default())).await);
            let errors = jail.close().await;
            assert!(errors.is_empty(), "{milliseconds}: {errors:?}");
            host.assert_clean();
        }
    });
}

/// The process that makes the jail, killed at moments spread over the whole.
fn the_owner_is_killed(runtime: &Runtime) {
    for milliseconds in [0, 2, 5, 10, 20, 30, 40, 60, 100, 200] {
        let host = Host::new(runtime);
        let (mut owner, _stdin, _output) = begin(&mut owner(&host));
        killed_after(milliseconds, &mut owner, &host);
    }
}

/// Whoever comes after it goes on, wherever it was.
fn the_owner_is_killed_as_it_cleans_up(runtime: &Runtime) {
    for milliseconds in [0, 5, 20, 80] {
        let host = Host::new(runtime);
        let (mut owner, mut stdin, mut output) = begin(&mut owner(&host));
        assert_eq!(next_line(&mut output), "started\n");
        stdin.write_all(b"\n").unwrap();
        assert_eq!(next_line(&mut output), "closing\n");
        killed_after(milliseconds, &mut owner, &host);
    }
}

/// The moment is the point; nothing is waited for. All that is left then can be undone.
fn killed_after(milliseconds: u64, owner: &mut Child, host: &Host) {
    std::thread::sleep(Duration::from_millis(milliseconds));
    owner.kill().unwrap();
    owner.wait().unwrap();
    let errors = fc_jailer::undo(&host.dir);
    assert!(errors.is_empty(), "{milliseconds}: {errors:?}");
    host.assert_clean();
}

/// It is a part of a service whose manager waits to be told that it is ready: containerd under systemd. The runtime is
/// not to wait for the VMM to tell that.
fn the_owner_is_of_a_service(runtime: &Runtime) {
    let host = Host::new(runtime);
    let socket = host.base.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_nonblocking(true).unwrap();
    let mut command = owner(&host);
    command.env("NOTIFY_SOCKET", &socket);
    command.envs([("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "containerd")]);
    let (mut owner, _stdin, mut output) = begin(&mut command);
    assert_eq!(next_line(&mut output), "started\n");
    assert!(manager.recv(&mut [0; 100]).is_err(), "nothing is told");
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(fc_jailer::undo(&host.dir).is_empty());
    host.assert_clean();
}

/// What makes a jail and waits to be killed.
fn owner(host: &Host) -> Command {
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner
        .arg(OWNER)
        .args([&host.dir, &host.runc, &host.vmm])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0);
    owner
}

/// Lets it begin.
fn begin(owner: &mut Command) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut owner = owner.spawn().unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap());
    assert_eq!(next_line(&mut lines), "begun\n");
    let mut stdin = owner.stdin.take().unwrap();
    stdin.write_all(b"\n").unwrap();
    (owner, stdin, lines)
}

fn next_line(output: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line
}

/// First argument of a process that only makes a jail.
pub const OWNER: &str = "--make-a-jail";

/// Makes a jail, starts a VMM in it, and, when it is told to, undoes it; waits to be killed.
pub fn own(arguments: &[String]) {
    let [dir, runc, vmm] = arguments else {
        panic!("arguments: {arguments:?}");
    };
    let host = Host::of(Path::new(dir), Path::new(runc), Path::new(vmm));
    println!("begun");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    block_on(async {
        let (jail, _vmm, _orders) = host.start().await;
        println!("started");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        println!("closing");
        jail.close().await;
        std::future::pending::<()>().await;
    });
}

fn the_vmm_does_not_start(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        // Not written to: it may be the test program by another name.
        fs::remove_file(&host.vmm).unwrap();
        write_program(&host.vmm, "#!/no/such/interpreter\n");
        let jail = host.prepare().await;
        let error = jail
            .start(fc_jailer::Start::default())
            .await
            .expect_err("an error");
        assert!(
            matches!(error, StartError::Container(_) | StartError::Vmm(_)),
            "{error}"
        );
        assert!(jail.close().await.is_empty());
        host.assert_clean();

        let mut host = Host::new(runtime);
        host.runc = "/nonexistent/runc".into();
        let jail = host.prepare().await;
        let error = jail
            .start(fc_jailer::Start::default())
            .await
            .expect_err("an error");
        let source = std::error::Error::source(&error).expect("a source");
        assert!(
            source.to_string().contains("jailer.runc_binary_path"),
            "{source}"
        );
        assert!(jail.close().await.is_empty());
        host.assert_clean();
    });
}

/// A runtime that deletes nothing.
fn stubborn(host: &mut Host) {
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' delete '*) echo 'no way' >&2; exit 3;; esac\nexec {} \"$@\"\n",
        host.runc.display()
    );
    let wrapper = host.base.path().join("stubborn-runc");
    write_program(&wrapper, &script);
    host.runc = wrapper;
}

fn failures_are_told_and_the_rest_is_done(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        stubborn(&mut host);
        let (jail, vmm, _) = host.start().await;
        vmm.kill();
        vmm.exited().await;
        let errors = jail.close().await;
        assert_eq!(errors.len(), 1, "{errors:?}");
        let source = std::error::Error::source(&errors[0]).unwrap().to_string();
        assert!(source.contains("no way"), "{source}");
        // All else is gone, and so is the container's state; the record stays for another attempt.
        assert!(fc_jailer::undo(&host.dir).is_empty());
        host.assert_clean();
    });
}

/// The container, a directory and a file stay, of a VMM that runs; nothing else does.
fn all_failures_are_told_together(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        stubborn(&mut host);
        let (jail, vmm, _) = host.start().await;
        let cgroup = jail.cgroup_path().unwrap().to_owned();
        // What the administrator mounts there is not the jail's to unmount.
        let busy = ["copies", "config.json"].map(|name| host.dir.join(name));
        for path in &busy {
            mount_bind(path, path).unwrap();
        }
        let errors = jail.close().await;
        let told = errors
            .iter()
            .map(|error| format!("{error}: {:?}", std::error::Error::source(error)));
        let told: Vec<_> = told.collect();
        for (error, words) in told.iter().zip(["no way", "copies", "config.json"]) {
            assert!(error.contains(words), "{told:?}");
        }
        assert_eq!(told.len(), 3, "{told:?}");
        vmm.exited().await;
        let groups = format!("/sys/fs/cgroup/*{cgroup} /sys/fs/cgroup{cgroup}");
        let list = format!("ls -d {groups} 2> /dev/null");
        let groups = Command::new("sh").args(["-c", &list]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&groups.stdout), "");
        for gone in ["rootfs", "drives", "runc"] {
            assert!(!host.dir.join(gone).exists(), "{gone}");
        }

        for path in &busy {
            unmount(path, UnmountFlags::DETACH).unwrap();
        }
        assert!(jail.close().await.is_empty());
        host.assert_clean();
    });
}
