//! The executable as containerd calls it, without any VM.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use fc_proto::NAMESPACE_KEY;
use fc_proto::containerd::shim::event::Envelope;
use fc_proto::containerd::shim::events::ForwardRequest;
use fc_proto::containerd::shim_async::{Events, create_events};
use fc_proto::containerd::types::introspection::RuntimeInfo;
use fc_proto::control::{
    CONTAINERD_ADDRESS_KEY, CreateVMRequest, CreateVMResponse, TOPIC_VM_STOP, VMStop,
    create_firecracker,
};
use fc_proto::protobuf::Message;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::task::api::DeleteResponse;
use fc_proto::ttrpc::asynchronous::{Server, TtrpcContext};
use fc_proto::ttrpc::{Code, Error as RpcError, get_status};
use fc_test_host::names;
use fc_vm::address;
use fc_vm::dir::VmDir;
use fc_vm::lock::StartLock;
use fc_vm::process::ProcessId;
use fc_vm::state::{self, State};
use serde_json::json;

/// Bounds every wait for something that must come.
const BOUND: Duration = Duration::from_secs(60);

/// A bundle and a configuration of their own.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Self { dir };
        std::fs::create_dir(fixture.bundle()).unwrap();
        std::fs::write(
            fixture.bundle().join("config.json"),
            r#"{"annotations":{"aws.firecracker.vm.id":"vm1"}}"#,
        )
        .unwrap();
        fixture.configure(&json!({"shim_base_dir": fixture.base()}).to_string());
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bundle(&self) -> PathBuf {
        self.path("bundle")
    }

    fn base(&self) -> PathBuf {
        self.path("vms")
    }

    fn address(&self) -> String {
        self.path("containerd.sock").display().to_string()
    }

    fn vm_dir(&self) -> VmDir {
        VmDir::new(&self.base(), "ns", "vm1").unwrap()
    }

    fn configure(&self, text: &str) {
        std::fs::write(self.path("config.json"), text).unwrap();
    }

    fn kill_shim(&self) {
        let shim = StartLock::take(&self.vm_dir()).unwrap().holder().unwrap();
        let shim = ProcessId::of(shim).unwrap();
        shim.kill(BOUND).unwrap();
    }

    fn delete(&self) -> Output {
        let bundle = self.bundle().display().to_string();
        self.shim(&["-bundle", &bundle, "delete"])
    }

    fn shim(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_containerd-shim-aws-firecracker"))
            .args(["-namespace", "ns", "-address", &self.address()])
            .args(["-publish-binary", "/usr/bin/containerd", "-id", "task1"])
            .args(args)
            .env(
                "FIRECRACKER_CONTAINERD_RUNTIME_CONFIG_PATH",
                self.path("config.json"),
            )
            .env_remove("FIRECRACKER_VM_ID")
            .env_remove("TTRPC_ADDRESS")
            .current_dir(self.bundle())
            .output()
            .unwrap()
    }
}

/// One line on stderr, nothing on stdout, exit code 1.
#[track_caller]
fn fails(output: &Output, word: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty());
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains(word), "{stderr}");
}

#[test]
fn describes_itself() {
    let shim = Command::new(env!("CARGO_BIN_EXE_containerd-shim-aws-firecracker"));
    let run = |flag: &str| {
        let mut shim = Command::new(shim.get_program());
        shim.arg(flag).output().unwrap()
    };
    let info = RuntimeInfo::parse_from_bytes(&run("-info").stdout).unwrap();
    assert_eq!(info.name, "aws.firecracker");
    assert_eq!(
        info.version.unwrap_or_default().version,
        env!("CARGO_PKG_VERSION")
    );
    let version = String::from_utf8(run("-v").stdout).unwrap();
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    fails(&run("-frob"), "-frob");
    fails(&run("stop"), "start or delete");
}

#[test]
fn serving_needs_a_launcher() {
    fails(&Fixture::new().shim(&[]), "FIRECRACKER_VM_ID");
}

#[test]
fn start_with_a_broken_configuration_leaves_nothing() {
    let fixture = Fixture::new();
    fixture.configure("{\n  \"vcpu_count\": \"two\"\n}");
    fails(&fixture.shim(&["start"]), "vcpu_count");
    fixture.configure("{");
    fails(&fixture.shim(&["start"]), "config.json");
    std::fs::remove_file(fixture.path("config.json")).unwrap();
    fails(&fixture.shim(&["start"]), "config.json");
    assert_eq!(names(&fixture.bundle()), ["config.json"]);
    assert!(!fixture.base().exists());
}

#[test]
fn start_with_a_bad_bundle_leaves_nothing() {
    let fixture = Fixture::new();
    let config = fixture.bundle().join("config.json");
    std::fs::write(
        &config,
        r#"{"annotations":{"aws.firecracker.vm.id":"../x"}}"#,
    )
    .unwrap();
    fails(&fixture.shim(&["start"]), "aws.firecracker.vm.id");
    std::fs::write(
        &config,
        r#"{"annotations":{"aws.firecracker.vm.memory_mib":"lots"}}"#,
    )
    .unwrap();
    fails(&fixture.shim(&["start"]), "memory_mib");
    assert_eq!(names(&fixture.bundle()), ["config.json"]);
    assert!(!fixture.base().exists());
    std::fs::remove_file(&config).unwrap();
    fails(&fixture.shim(&["start"]), "config.json");
}

/// The shim comes up, learns that it cannot boot, waits to tell somebody, and can be ended by
/// `delete` when it is dead.
#[test]
fn delete_cleans_up_after_a_dead_shim() {
    let fixture = Fixture::new();
    fixture.configure(
        &json!({"shim_base_dir": fixture.base(), "kernel_image_path": "/nonexistent"}).to_string(),
    );
    let started = fixture.shim(&["start"]);
    let address = String::from_utf8(started.stdout).unwrap();
    let socket = address::task_socket(&fixture.address(), "ns", "vm1");
    assert_eq!(address, address::url(&socket));
    assert_eq!(
        names(&fixture.bundle()),
        ["address", "config.json", "vm-id"]
    );
    assert!(socket.exists());

    let dir = fixture.vm_dir();
    fixture.kill_shim();
    assert!(State::load(&dir).unwrap().is_some());
    let deleted = fixture.delete();
    let response = DeleteResponse::parse_from_bytes(&deleted.stdout).unwrap();
    assert_eq!(response.exit_status, 137);
    assert!(response.exited_at.is_some());
    assert!(!socket.exists() && !dir.path().exists());
    assert!(state::undo(&dir).is_empty());
}

#[test]
fn delete_of_what_never_started_answers_all_the_same() {
    let fixture = Fixture::new();
    let deleted = fixture.shim(&["delete"]);
    let response = DeleteResponse::parse_from_bytes(&deleted.stdout).unwrap();
    assert_eq!(response.exit_status, 137);
    assert!(!fixture.base().exists());
}

/// A daemon that answers every CreateVM with one status.
struct Daemon(fc_proto::ttrpc::Code);

#[async_trait::async_trait]
impl fc_proto::control::Firecracker for Daemon {
    async fn create_vm(
        &self,
        context: &fc_proto::ttrpc::asynchronous::TtrpcContext,
        request: CreateVMRequest,
    ) -> fc_proto::ttrpc::Result<CreateVMResponse> {
        assert!(request.ReturnWhenLaunched && request.VMID == "vm1");
        assert_eq!(context.metadata[NAMESPACE_KEY], ["ns"]);
        let containerd = &context.metadata[CONTAINERD_ADDRESS_KEY][0];
        let text = format!("no shim for {containerd}");
        Err(RpcError::RpcStatus(get_status(self.0, text)))
    }
}

/// Runs `start` while a daemon listens that answers with `code`.
fn start_with_daemon(fixture: &Fixture, code: Code) -> Output {
    let socket = fixture.path("control.sock");
    let config = json!({
        "shim_base_dir": fixture.base(), "kernel_image_path": "/nonexistent",
        "control_address": socket,
    });
    fixture.configure(&config.to_string());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut server = runtime.block_on(async {
        let server = Server::new().bind(&format!("unix://{}", socket.display()));
        let mut server = server
            .unwrap()
            .register_service(create_firecracker(Arc::new(Daemon(code))));
        server.start().await.unwrap();
        server
    });
    let output = fixture.shim(&["start"]);
    runtime.block_on(server.shutdown()).unwrap();
    output
}

#[test]
fn start_asks_the_daemon() {
    let fixture = Fixture::new();
    // The VM has a shim: only its address is printed.
    let found = start_with_daemon(&fixture, Code::ALREADY_EXISTS);
    let socket = address::task_socket(&fixture.address(), "ns", "vm1");
    assert_eq!(
        String::from_utf8(found.stdout).unwrap(),
        address::url(&socket)
    );
    assert!(!fixture.base().exists());

    let fixture = Fixture::new();
    let refused = start_with_daemon(&fixture, Code::INTERNAL);
    fails(&refused, &format!("no shim for {}", fixture.address()));
    assert_eq!(names(&fixture.bundle()), ["config.json"]);
}

#[test]
fn start_does_without_a_daemon_that_serves_another_containerd_or_is_dead() {
    for dead in [false, true] {
        let fixture = Fixture::new();
        if dead {
            let socket = fixture.path("control.sock");
            drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
            let config = json!({
                "shim_base_dir": fixture.base(), "kernel_image_path": "/nonexistent",
                "control_address": socket,
            });
            fixture.configure(&config.to_string());
            assert!(fixture.shim(&["start"]).status.success());
        } else {
            let started = start_with_daemon(&fixture, Code::FAILED_PRECONDITION);
            assert!(started.status.success());
        }
        fixture.kill_shim();
        assert!(fixture.delete().status.success());
        assert!(!fixture.vm_dir().path().exists());
    }
}

/// containerd, as far as events go.
struct Containerd(Sender<Envelope>);

#[async_trait::async_trait]
impl Events for Containerd {
    async fn forward(
        &self,
        _: &TtrpcContext,
        request: ForwardRequest,
    ) -> fc_proto::ttrpc::Result<Empty> {
        let event = request.envelope.into_option().unwrap();
        self.0.send(event).unwrap();
        Ok(Empty::default())
    }
}

/// A VM of the id that ran, and whose VMM and shim are dead.
fn leave_dead_vm(dir: &VmDir) {
    std::fs::create_dir_all(dir.path()).unwrap();
    let mut vmm = Command::new("true").spawn().unwrap();
    let state = State {
        vmm: ProcessId::of(vmm.id()),
        ..State::new(dir)
    };
    vmm.wait().unwrap();
    state.store(dir).unwrap();
}

#[test]
fn who_undoes_a_dead_vm_tells_containerd_of_its_end() {
    let fixture = Fixture::new();
    fixture.configure(
        &json!({"shim_base_dir": fixture.base(), "kernel_image_path": "/nonexistent"}).to_string(),
    );
    let (sender, events) = channel();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _containerd = runtime.block_on(async {
        let server = Server::new().bind(&format!("unix://{}.ttrpc", fixture.address()));
        let mut server = server
            .unwrap()
            .register_service(create_events(Arc::new(Containerd(sender))));
        server.start().await.unwrap();
        server
    });
    let expect_stop = || {
        let event = events.recv_timeout(BOUND).unwrap();
        assert_eq!((&*event.namespace, &*event.topic), ("ns", TOPIC_VM_STOP));
        let stopped = VMStop::parse_from_bytes(&event.event.value).unwrap();
        assert_eq!(stopped.VMID, "vm1");
    };

    // `start` of the next one of the id, which never runs.
    leave_dead_vm(&fixture.vm_dir());
    assert!(fixture.shim(&["start"]).status.success());
    expect_stop();
    fixture.kill_shim();
    assert!(fixture.delete().status.success());

    // `delete`.
    leave_dead_vm(&fixture.vm_dir());
    assert!(fixture.delete().status.success());
    expect_stop();
    assert!(events.try_recv().is_err(), "of each VM once");
}
