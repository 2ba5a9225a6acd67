//! `firecracker-control` beside an instance's containerd, and calls to it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fc_proto::control::{CreateVMRequest, FirecrackerClient, GetVMInfoRequest, StopVMRequest};
use fc_proto::protobuf::MessageFull;
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::context::{Context, with_duration};
use fc_proto::ttrpc::{self, Code};
use fc_testbed::leftovers::Scope;
use rustix::process::{Pid, Signal, kill_process};

use crate::fixture::{Instance, Setup};

/// Bound on a call, or on anything else that may never come: to find what hangs, on a busy machine too.
pub const BOUND: Duration = Duration::from_secs(300);
/// What a VM may take to start or to end, in seconds; less than [`BOUND`], so that its own reason is what is seen.
pub const PATIENCE: u32 = 240;

/// A daemon. Dropping it kills it.
pub struct Daemon {
    child: Child,
    scope: Scope,
    /// Its log.
    pub log: PathBuf,
}

impl Daemon {
    /// Starts the daemon for an instance's containerd and waits until it serves.
    pub fn start(setup: &Setup, on: &Instance) -> Self {
        let log = on.layout.dir.join("control.log");
        let (read, write) = std::io::pipe().expect("a pipe");
        let child = Command::new(setup.bin_dir().join("firecracker-control"))
            .arg("--config")
            .arg(on.layout.dir.join("firecracker-runtime.json"))
            .arg("--containerd-address")
            .arg(on.containerd.socket())
            .stdin(Stdio::null())
            .stderr(write)
            .spawn()
            .expect("firecracker-control");
        let mut lines = BufReader::new(read).lines().map_while(Result::ok);
        let mut copy = File::options()
            .append(true)
            .create(true)
            .open(&log)
            .expect("a log");
        let mut save = move |line: &str| {
            use std::io::Write;
            writeln!(copy, "{line}").expect("a log");
        };
        let serving = lines.by_ref().any(|line| {
            save(&line);
            line.contains("Serving")
        });
        assert!(
            serving,
            "{}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
        std::thread::spawn(move || lines.for_each(|line| save(&line)));
        Self {
            child,
            scope: on.scope(),
            log,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // As `kill -9` does it. It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // VMs of a test that failed, which nobody ends any more.
            for process in self.scope.processes() {
                let pid = Pid::from_raw(process.pid);
                let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
            }
        }
    }
}

/// The daemon's socket.
pub fn address(on: &Instance) -> PathBuf {
    on.layout.dir.join("control.sock")
}

/// A client of whoever serves at `socket`.
pub async fn client(socket: &Path) -> FirecrackerClient {
    let client = Client::connect(&format!("unix://{}", socket.display())).await;
    FirecrackerClient::new(client.expect("a connection"))
}

/// Runs calls on a runtime of their own.
pub fn calls<T>(calls: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(calls)
}

/// A call's context.
pub fn ctx(namespace: &str) -> Context {
    let mut context = with_duration(BOUND);
    context.set(
        "containerd-namespace-ttrpc".to_owned(),
        vec![namespace.to_owned()],
    );
    context
}

/// A request for a VM with everything else unset.
pub fn of<R: MessageFull>(vm_id: &str) -> R {
    let mut request = R::new();
    let field = R::descriptor().field_by_name("VMID").expect("VMID");
    field.set_singular_field(&mut request, vm_id.to_owned().into());
    request
}

/// A CreateVM with a bound that suits a busy machine.
pub fn create(vm_id: &str) -> CreateVMRequest {
    CreateVMRequest {
        TimeoutSeconds: PATIENCE,
        ..of(vm_id)
    }
}

/// A StopVM.
pub fn stop(vm_id: &str) -> StopVMRequest {
    StopVMRequest {
        TimeoutSeconds: PATIENCE,
        ..of(vm_id)
    }
}

/// A GetVMInfo.
pub fn info(vm_id: &str) -> GetVMInfoRequest {
    of(vm_id)
}

/// The code and text that a call failed with.
#[track_caller]
pub fn failed<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer {
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        other => panic!("{other:?}"),
    }
}
