//! A control service whose shims are stand-ins: the daemon itself, or this process.

use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fc_config::Config;
use fc_control::client::{self, Connection};
use fc_control::host::{Host, Settings};
use fc_proto::control::*;
use fc_proto::protobuf::MessageField;
use fc_proto::ttrpc::context::Context;
use fc_proto::ttrpc::{self, Code};
use fc_rpc::client::context;
use fc_vm::list::{self, Vm};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;

/// Bounds every wait for something that must come.
pub const BOUND: Duration = Duration::from_secs(120);

/// A directory, the VMs in it, and what their stand-ins say.
pub struct Setup {
    pub dir: tempfile::TempDir,
    said: mpsc::UnboundedReceiver<String>,
    heard: VecDeque<String>,
}

/// A daemon. Dropping it kills it.
pub struct Daemon {
    pub child: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Setup {
    pub fn new() -> Self {
        Self::with(&serde_json::json!({}))
    }

    /// With more keys in the configuration.
    pub fn with(keys: &serde_json::Value) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = UnixDatagram::bind(dir.path().join("said")).expect("a socket");
        let (sender, said) = mpsc::unbounded_channel();
        // Always emptied: a stand-in must not wait for the test.
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok(n @ 1..) = socket.recv(&mut buffer) {
                let line = String::from_utf8_lossy(&buffer[..n]).into_owned();
                // The test may have ended.
                let _ = sender.send(line);
            }
        });
        let setup = Self {
            said,
            heard: VecDeque::new(),
            dir,
        };
        let mut config = serde_json::json!({
            "shim_base_dir": setup.base(),
            "control_address": setup.path("control.sock"),
        });
        let keys = keys.as_object().expect("an object").clone();
        config.as_object_mut().expect("an object").extend(keys);
        std::fs::write(setup.path("config.json"), config.to_string()).expect("a configuration");
        setup
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn base(&self) -> PathBuf {
        self.path("vms")
    }

    pub fn settings(&self) -> Settings {
        let config = Config::load_from(&self.path("config.json")).expect("a configuration");
        let containerd = self.path("containerd.sock").display().to_string();
        Settings {
            shim: std::env::current_exe().expect("this program"),
            ..Settings::new(config.config, &containerd)
        }
    }

    /// The daemon's command line, not started yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firecracker-control"));
        command
            .arg("--config")
            .arg(self.path("config.json"))
            .arg("--shim")
            .arg(std::env::current_exe().expect("this program"))
            .arg("--containerd-address")
            .arg(self.path("containerd.sock"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts the daemon and waits until it serves.
    pub async fn daemon(&self) -> Daemon {
        let mut daemon = Daemon::start(self.command());
        daemon.logged("Serving").await;
        daemon
    }

    /// A client of the daemon that runs.
    pub async fn client(&self) -> Connection {
        let connection = client::connect(self.settings()).await.expect("a client");
        assert!(connection.own.is_none());
        connection
    }

    /// A client without a daemon.
    pub async fn own(&self) -> Connection {
        client::in_process(Host::new(self.settings()))
            .await
            .expect("a client")
    }

    /// Waits until the stand-in of `vm` (`namespace/id`) said `what`; answers the rest of its line.
    pub async fn said(&mut self, vm: &str, what: &str) -> String {
        let start = format!("{vm} {what}");
        if let Some(at) = self.heard.iter().position(|line| line.starts_with(&start)) {
            return self.heard.remove(at).expect("found")[start.len()..].to_owned();
        }
        loop {
            let line = tokio::time::timeout(BOUND, self.said.recv()).await;
            let line = line.unwrap_or_else(|_| panic!("{start} was not said"));
            let line = line.expect("the thread goes on");
            match line.strip_prefix(&start) {
                Some(rest) => return rest.to_owned(),
                None => self.heard.push_back(line),
            }
        }
    }

    /// Whether the stand-in of `vm` has said `what` by now.
    pub fn has_said(&mut self, vm: &str, what: &str) -> bool {
        while let Ok(line) = self.said.try_recv() {
            self.heard.push_back(line);
        }
        let start = format!("{vm} {what}");
        self.heard.iter().any(|line| line.starts_with(&start))
    }

    /// Process ids of a stand-in and its VMM, once it runs.
    pub async fn processes(&mut self, vm: &str) -> (u32, u32) {
        let rest = self.said(vm, "runs ").await;
        let (shim, vmm) = rest.split_once(' ').expect("two numbers");
        (
            shim.parse().expect("a number"),
            vmm.parse().expect("a number"),
        )
    }

    pub fn vms(&self) -> Vec<Vm> {
        list::list(&self.base()).expect("VMs")
    }

    /// Nothing is left of any VM: no directory, no socket.
    #[track_caller]
    pub fn expect_nothing(&self, sockets: &[PathBuf]) {
        assert!(self.vms().is_empty(), "{:?}", self.vms());
        for socket in sockets {
            assert!(!socket.exists(), "{}", socket.display());
        }
    }

    /// Where the shim of a VM serves.
    pub fn sockets(&self, namespace: &str, vm_id: &str) -> Vec<PathBuf> {
        let containerd = self.path("containerd.sock").display().to_string();
        let task = fc_vm::address::task_socket(&containerd, namespace, vm_id);
        vec![fc_vm::address::control_socket(&task), task]
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        // Of tests that failed, too.
        for vm in self.vms() {
            for process in [vm.shim(), vm.vmm()].into_iter().flatten() {
                let _ = process.kill(BOUND);
            }
            let _ = list::clean_up(&vm.dir);
        }
        // Nothing said: the thread ends.
        let said = UnixDatagram::unbound()
            .and_then(|socket| socket.connect(self.path("said")).map(|()| socket));
        let _ = said.and_then(|socket| socket.send(&[]));
    }
}

impl Daemon {
    /// Starts it; see [`Setup::command`].
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the daemon");
        let log = BufReader::new(child.stderr.take().expect("piped")).lines();
        Self { child, log }
    }

    /// Waits for a line of the daemon's log that holds `text`, and answers it.
    pub async fn logged(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        loop {
            let next = tokio::time::timeout(BOUND, self.log.next_line());
            match next.await.ok().and_then(Result::ok).flatten() {
                Some(line) if line.contains(text) => return line,
                Some(line) => all.push(line),
                None => panic!("{text:?} is not in the log:\n{}", all.join("\n")),
            }
        }
    }

    /// As `kill -9` does it.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }
}

pub fn ctx(namespace: &str) -> Context {
    context(namespace, BOUND)
}

pub fn create(vm_id: &str) -> CreateVMRequest {
    CreateVMRequest {
        VMID: vm_id.to_owned(),
        MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
            MemSizeMib: 321,
            ..FirecrackerMachineConfiguration::default()
        }),
        ..CreateVMRequest::default()
    }
}

pub fn stop(vm_id: &str) -> StopVMRequest {
    StopVMRequest {
        VMID: vm_id.to_owned(),
        ..StopVMRequest::default()
    }
}

pub fn info(vm_id: &str) -> GetVMInfoRequest {
    GetVMInfoRequest {
        VMID: vm_id.to_owned(),
        ..GetVMInfoRequest::default()
    }
}

/// The status that a call failed with.
#[track_caller]
pub fn failed<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("{other:?}"),
    }
}

/// Whether a process is gone, zombies included.
pub fn is_gone(pid: u32) -> bool {
    !fc_vm::process::ProcessId::of(pid).is_some_and(fc_vm::process::ProcessId::is_alive)
}

pub fn kill(pid: u32) {
    let process = fc_vm::process::ProcessId::of(pid).expect("it lives");
    process.kill(BOUND).expect("killed");
}

/// Waits until `path` is gone, woken by changes in its directory.
pub async fn gone(path: &Path) {
    let watched = watch(path.parent().expect("a directory"));
    let wait = async {
        while path.exists() {
            let mut ready = watched.readable().await.expect("inotify");
            let mut buffer = [0_u8; 4096];
            while rustix::io::read(watched.get_ref(), &mut buffer).is_ok_and(|n| n > 0) {}
            ready.clear_ready();
        }
    };
    let waited = tokio::time::timeout(BOUND, wait).await;
    assert!(waited.is_ok(), "{} is still there", path.display());
}

fn watch(dir: &Path) -> tokio::io::unix::AsyncFd<std::os::fd::OwnedFd> {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
    let fd = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("inotify");
    let what = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
    add_watch(&fd, dir, what).expect("inotify");
    // SAFETY: an owned descriptor stays open and the same until `AsyncFd` drops it.
    let fd = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE)
    };
    fd.expect("a runtime")
}
