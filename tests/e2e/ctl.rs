//! `firecracker-ctl` against real VMs, with and without a daemon that it would have to start: it needs none.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::OnSetup;
use crate::control::events;
use crate::daemon::PATIENCE;
use crate::fixture::{Finished, Flavor, Instance, Setup, eventually, finish};
use crate::tap::Tap;

/// Run with the machine's containerd.
pub const TESTS: &[(&str, OnSetup)] = &[
    ("ctl::every_command", every_command),
    ("ctl::gc_removes_what_a_killed_shim_left", gc),
    ("ctl::a_signal_ends_the_vm_being_created", signalled),
];

/// `firecracker-ctl` for the VMs of an instance.
pub struct Ctl<'a> {
    pub setup: &'a Setup,
    pub on: &'a Instance,
}

impl Ctl<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.setup.bin_dir().join("firecracker-ctl"));
        command
            .arg("--config")
            .arg(self.on.layout.dir.join("firecracker-runtime.json"))
            .arg("--containerd-address")
            .arg(self.on.containerd.socket())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> Finished {
        finish(self.command(args))
    }

    /// What it prints with `--json`.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let text = self.run(&args).expect(0).text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn every_command(setup: &Setup, flavor: &Flavor) {
    let on = &Instance::start(setup, flavor);
    let ctl = Ctl { setup, on };
    let patience = PATIENCE.to_string();
    let create = [
        "vm",
        "create",
        "web",
        "--timeout",
        &patience,
        "--containers",
        "2",
        "--memory",
        "160",
    ];
    let balloon = ["--balloon", "8", "--balloon-stats", "1"];
    let tap = Tap::new();
    let interface = format!("{},mmds", tap.name());
    let created = ctl.json(&[&create[..], &balloon, &["--tap", &interface]].concat());
    assert_eq!(created["id"], "web");
    assert_eq!(ctl.run(&create).expect(4).text(), "", "it exists already");

    // A task of containerd's goes into the VM that a person made.
    let in_web = ["--annotation", "aws.firecracker.vm.id=web"];
    on.run_detached(&in_web, "task", &["/bin/sleep", "600"]);
    let info = ctl.json(&["vm", "info", "web"]);
    assert_eq!(info["state"], "running");
    assert_eq!(info["memory_mib"], 160);
    assert_eq!(info["tasks"][0]["id"], "task");
    assert_eq!(info["tasks"][0]["status"], "running");
    let attached = info["drives"].as_array().expect("drives").iter();
    assert!(
        attached.clone().any(|drive| drive["owner"] == "task"),
        "{info}"
    );
    let socket = info["paths"]["api_socket"].as_str().expect("a path");
    assert!(std::path::Path::new(socket).exists());
    assert!(
        ctl.run(&["vm", "info", "web"])
            .expect(0)
            .text()
            .contains("ctrstub0")
    );

    metadata(&ctl);
    ballooning(&ctl);

    ctl.run(&["vm", "pause", "web"]).expect(0);
    assert_eq!(ctl.json(&["vm", "list"])[0]["state"], "paused");
    ctl.run(&["vm", "resume", "web"]).expect(0);
    assert!(
        ctl.run(&["vm", "list"])
            .expect(0)
            .text()
            .contains("running")
    );
    let console = ctl.run(&["vm", "console", "web"]).expect(0).text();
    assert!(console.contains("firecracker-agent"), "{console}");
    let logs = ctl.run(&["vm", "logs", "web"]).expect(0).text();
    assert!(logs.contains("The VM runs"), "{logs}");

    on.remove("task");
    let watch = |args: &[&str]| {
        let spawned = ctl.command(args).stdout(Stdio::piped()).spawn();
        spawned.expect("a watcher")
    };
    let mut follower = watch(&["vm", "console", "web", "--follow"]);
    let waiter = watch(&["vm", "wait", "web"]);
    // Who comes when the VM is gone is told that there is none.
    let mut first = [0];
    let shown = follower.stdout.as_mut().expect("piped").read(&mut first);
    assert_eq!(shown.expect("what there was"), 1);
    assert!(eventually(|| watches(&waiter, &info["shim_pid"])));
    ctl.run(&["vm", "stop", "web", "--timeout", &patience])
        .expect(0);
    for watcher in [follower, waiter] {
        let output = watcher.wait_with_output().expect("its end");
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(ctl.json(&["vm", "list"]), Value::Array(Vec::new()));
    for gone in ["info", "stop", "pause", "wait", "console"] {
        ctl.run(&["vm", gone, "web"]).expect(3);
    }
    ctl.run(&["vm", "create", "a--b"]).expect(2);
    cache_and_doctor(&ctl);
}

/// Whether a program has a pidfd of a process: proc(5), "/proc/pid/fdinfo/".
fn watches(program: &Child, process: &Value) -> bool {
    let line = format!("Pid:\t{process}");
    let open = std::fs::read_dir(format!("/proc/{}/fdinfo", program.id()));
    let open = open.expect("a process that was not waited for").flatten();
    let mut infos = open.filter_map(|fd| std::fs::read_to_string(fd.path()).ok());
    infos.any(|info| info.lines().any(|found| found == line))
}

fn metadata(ctl: &Ctl) {
    ctl.run(&["vm", "metadata", "set", "web", r#"{"a":1,"b":2}"#])
        .expect(0);
    ctl.run(&["vm", "metadata", "update", "web", r#"{"a":null,"c":3}"#])
        .expect(0);
    let metadata = ctl.json(&["vm", "metadata", "get", "web"]);
    assert_eq!(metadata, serde_json::json!({"b": 2, "c": 3}));
    let refused = ctl.run(&["vm", "metadata", "set", "web", "{"]).expect(2);
    assert!(refused.stderr.contains("JSON"), "{}", refused.stderr);
}

fn ballooning(ctl: &Ctl) {
    ctl.run(&["vm", "balloon", "set", "web", "12"]).expect(0);
    let config = ctl.json(&["vm", "balloon", "show", "web"]);
    assert_eq!(config["amount_mib"], 12);
    ctl.run(&["vm", "balloon", "stats", "web", "--interval", "2"])
        .expect(0);
    assert_eq!(
        ctl.json(&["vm", "balloon", "stats", "web"])["target_mib"],
        12
    );
}

/// The task's image is in the cache, and nobody uses it any more.
fn cache_and_doctor(ctl: &Ctl) {
    let listed = ctl.json(&["cache", "list"]);
    let images = |entries: &Value| {
        let entries = entries.as_array().expect("entries");
        entries
            .iter()
            .filter(|entry| entry["kind"] == "image")
            .count()
    };
    assert_eq!(images(&listed), 1, "{listed}");
    let findings: Value =
        serde_json::from_str(&ctl.run(&["doctor", "--full", "--json"]).text()).expect("findings");
    let level = |check: &str| {
        let of_check = findings.as_array().expect("findings").iter();
        let of_check = of_check.filter(|finding| finding["check"] == check);
        of_check
            .map(|finding| finding["level"].clone())
            .collect::<Vec<_>>()
    };
    for check in [
        "configuration",
        "containerd",
        "runtime",
        "kernel",
        "guest image",
        "VMs",
    ] {
        assert_eq!(level(check), ["ok"], "{check}: {findings}");
    }
    assert_eq!(images(&ctl.json(&["cache", "prune"])), 1);
    assert_eq!(images(&ctl.json(&["cache", "list"])), 0);
}

fn gc(setup: &Setup, flavor: &Flavor) {
    let on = &Instance::with(setup, flavor, |_| {}, events::DEBUG);
    let ctl = Ctl { setup, on };
    let patience = PATIENCE.to_string();
    let created = ctl.json(&["vm", "create", "doomed", "--timeout", &patience]);
    let socket = created["api_socket"].as_str().expect("a path").to_owned();
    let info = ctl.json(&["vm", "info", "doomed"]);
    let shim = info["shim_pid"].as_i64().expect("a process id");
    let shim = rustix::process::Pid::from_raw(i32::try_from(shim).expect("a pid")).expect("a pid");
    let pidfd =
        rustix::process::pidfd_open(shim, rustix::process::PidfdFlags::empty()).expect("it");
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).expect("a signal");
    let mut ended = [rustix::event::PollFd::new(
        &pidfd,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut ended, None).expect("its end");

    let listed = ctl.json(&["vm", "list"]);
    assert_eq!(listed[0]["state"], "dead", "{listed}");
    ctl.run(&["vm", "info", "doomed"]).expect(3);
    let collected = ctl.json(&["gc"]);
    assert_eq!(collected[0]["removed"], true, "{collected}");
    assert_eq!(events::taken(on, "default", events::STOP), 1);
    assert!(!std::path::Path::new(&socket).exists());
    assert_eq!(ctl.json(&["gc"]), Value::Array(Vec::new()));
    assert_eq!(ctl.json(&["vm", "list"]), Value::Array(Vec::new()));
}

/// As `timeout` and service managers end programs: the VM that is being created goes, too, long before its own bound.
fn signalled(setup: &Setup, flavor: &Flavor) {
    use rustix::process::{Pid, Signal, kill_process};
    let on = &Instance::start(setup, flavor);
    let ctl = Ctl { setup, on };
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = ctl.command(&["vm", "create", "unwanted", "--timeout", "600"]);
        let creating = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut creating = creating.expect("it runs");
        // The moment that a VM has a directory and a shim to be ended.
        while ctl.json(&["vm", "list"]) == Value::Array(Vec::new()) {
            let ended = creating.try_wait().expect("its state");
            assert_eq!(ended, None, "it creates a VM");
        }
        let pid = Pid::from_raw(i32::try_from(creating.id()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("a signal");
        let ended = creating.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("Interrupted"), "{said}");
        assert_eq!(ctl.json(&["vm", "list"]), Value::Array(Vec::new()));
    }
}
