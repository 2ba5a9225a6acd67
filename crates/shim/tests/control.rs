//! The control sockets of real VMs: one shim each, without containerd.
//!
//! Needs root, a VMM (`FIRECRACKER_BIN`, else `firecracker-tcg` beside the shim) and a guest image
//! (`FC_GUEST_DIR`, else `build/guest`); says so and does nothing where one of them is missing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fc_proto::control::{
    CreateVMRequest, FirecrackerClient, GetBalloonConfigRequest, GetVMInfoRequest,
    GetVMMetadataRequest, PauseVMRequest, ResumeVMRequest, SetVMMetadataRequest, StopVMRequest,
    UpdateBalloonRequest, UpdateVMMetadataRequest,
};
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::context::Context;
use fc_proto::ttrpc::{self, Code, Error as RpcError};
use fc_proto::vm::{ReadRequest, StatusResponse, Stream, VmClient};
use fc_vm::dir::VmDir;
use fc_vm::launch::{Launch, Launched, ShimLog, launch};
use fc_vm::process::ProcessId;
use serde_json::json;

/// Bound on waiting for what may never come.
const BOUND: Duration = Duration::from_secs(120);

/// A shim whose VM nobody asked for yet.
struct Shim {
    dir: tempfile::TempDir,
    launched: Launched,
}

impl Shim {
    /// `None` where the machine lacks something, which is told.
    fn launch() -> Option<Self> {
        let (vmm, guest) = match (vmm(), guest()) {
            (Ok(vmm), Ok(guest)) => (vmm, guest),
            (Err(missing), _) | (_, Err(missing)) => {
                println!("SKIPPED: {missing}");
                return None;
            }
        };
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let config = json!({
            "firecracker_binary_path": vmm,
            "kernel_image_path": guest.join("default-vmlinux.bin"),
            "initrd_path": guest.join("default-initrd.img"),
            "root_drive": guest.join("default-rootfs.img"),
            "kernel_args": "console=ttyS0 quiet reboot=k panic=1 pci=off 8250.nr_uarts=1",
            "shim_base_dir": path("vms"),
            "image_cache_dir": path("cache"),
        });
        std::fs::write(path("config.json"), config.to_string()).unwrap();
        let launched = launch(&Launch {
            base: path("vms"),
            namespace: "ns".to_owned(),
            vm_id: "vm".to_owned(),
            containerd_address: path("containerd.sock").display().to_string(),
            ttrpc_address: path("containerd.sock.ttrpc").display().to_string(),
            program: env!("CARGO_BIN_EXE_containerd-shim-aws-firecracker").into(),
            config: Some(path("config.json")),
            log: ShimLog::Discard,
            debug: false,
            request: None,
        });
        let launched = launched.unwrap();
        Some(Self { dir, launched })
    }

    async fn connect(&self) -> Client {
        let socket = &self.launched.control_socket;
        fc_rpc::client::connect(socket).await.unwrap()
    }

    /// Waits until the shim has ended, and looks for what it left.
    fn ended(mut self) {
        let child = self.launched.child.take();
        assert!(self.launched.shim.wait(BOUND).unwrap());
        child.unwrap().wait().unwrap();
        let dir = VmDir::new(&self.dir.path().join("vms"), "ns", "vm").unwrap();
        assert!(!dir.path().exists());
        assert!(!self.launched.control_socket.exists());
        assert!(!self.launched.task_socket.exists());
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        // Only after a failed assertion it is there.
        let _ = self.launched.shim.kill(BOUND);
    }
}

fn vmm() -> Result<PathBuf, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    let beside = || {
        Path::new(env!("CARGO_BIN_EXE_containerd-shim-aws-firecracker"))
            .with_file_name("firecracker-tcg")
    };
    existing(std::env::var_os("FIRECRACKER_BIN").map_or_else(beside, PathBuf::from))
}

fn guest() -> Result<PathBuf, String> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/guest");
    let dir = std::env::var_os("FC_GUEST_DIR").map_or_else(built, PathBuf::from);
    existing(dir.join("default-rootfs.img")).map(|_| dir)
}

fn existing(path: PathBuf) -> Result<PathBuf, String> {
    match path.exists() {
        true => Ok(path),
        false => Err(format!("{} is missing", path.display())),
    }
}

fn ctx() -> Context {
    fc_rpc::client::context("ns", BOUND)
}

fn create() -> CreateVMRequest {
    CreateVMRequest {
        VMID: "vm".to_owned(),
        ..CreateVMRequest::default()
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: ttrpc::Result<T>, code: Code, begin: &str) {
    match result {
        Err(RpcError::RpcStatus(status)) => {
            assert_eq!(status.code(), code, "{}", status.message);
            assert!(status.message.starts_with(begin), "{}", status.message);
        }
        other => panic!("{other:?}"),
    }
}

/// Follows Status until `wanted` says so; the console's next line, or the VM's end, says when to look again.
async fn status(vm: &VmClient, wanted: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
    let mut after = 0;
    loop {
        let status = vm.status(ctx(), &Empty::default()).await.unwrap();
        if wanted(&status) {
            return status;
        }
        let read = ReadRequest {
            stream: Stream::CONSOLE.into(),
            after,
            wait_ms: 200,
            ..ReadRequest::default()
        };
        after = vm.read(ctx(), &read).await.unwrap().last;
    }
}

#[tokio::test]
async fn calls_and_codes() {
    let Some(shim) = Shim::launch() else { return };
    let client = shim.connect().await;
    let (vm, control) = (
        VmClient::new(client.clone()),
        FirecrackerClient::new(client),
    );
    let before = vm.status(ctx(), &Empty::default()).await.unwrap();
    assert_eq!((before.state.as_str(), before.vmm_pid), ("waiting", 0));

    let other = CreateVMRequest {
        VMID: "other".to_owned(),
        ..create()
    };
    let other = control.create_vm(ctx(), &other).await;
    refused(
        other,
        Code::INVALID_ARGUMENT,
        "This is the shim of VM \"vm\"",
    );
    let created = control.create_vm(ctx(), &create()).await.unwrap();
    for path in [
        &created.SocketPath,
        &created.LogFifoPath,
        &created.MetricsFifoPath,
    ] {
        assert!(Path::new(path).exists(), "{path}");
    }
    let again = control.create_vm(ctx(), &create()).await;
    refused(
        again,
        Code::ALREADY_EXISTS,
        "shim cannot create VM more than once",
    );
    let info = control
        .get_vm_info(ctx(), &id::<GetVMInfoRequest>())
        .await
        .unwrap();
    assert_eq!(info.SocketPath, created.SocketPath);
    assert!(Path::new(&info.VSockPath).exists());

    let status = vm.status(ctx(), &Empty::default()).await.unwrap();
    assert_eq!(status.state, "running");
    assert!(ProcessId::of(status.vmm_pid).is_some());
    assert!(!status.agent_version.is_empty() && !status.vmm_version.is_empty());
    assert!(status.slots.iter().all(|slot| slot.state == "free"));
    assert!(status.running_unix_ns > status.created_unix_ns);
    for stream in [Stream::CONSOLE, Stream::SHIM_LOG] {
        let read = ReadRequest {
            stream: stream.into(),
            ..ReadRequest::default()
        };
        let read = vm.read(ctx(), &read).await.unwrap();
        assert!(!read.lines.is_empty() && !read.ended, "{stream:?}");
        assert_eq!(read.last, read.lines.len() as u64 + read.lost);
    }

    metadata(&control).await;
    let balloon = "Failed to get balloon configuration. Please check";
    let config = control
        .get_balloon_config(ctx(), &id::<GetBalloonConfigRequest>())
        .await;
    refused(config, Code::FAILED_PRECONDITION, balloon);
    let update = UpdateBalloonRequest {
        AmountMib: 8,
        ..id::<UpdateBalloonRequest>()
    };
    let update = control.update_balloon(ctx(), &update).await;
    refused(update, Code::FAILED_PRECONDITION, balloon);

    control
        .pause_vm(ctx(), &id::<PauseVMRequest>())
        .await
        .unwrap();
    let paused = vm.status(ctx(), &Empty::default()).await.unwrap();
    assert_eq!(paused.state, "paused");
    control
        .resume_vm(ctx(), &id::<ResumeVMRequest>())
        .await
        .unwrap();
    control
        .pause_vm(ctx(), &id::<PauseVMRequest>())
        .await
        .unwrap();
    let stopped = control.stop_vm(ctx(), &id::<StopVMRequest>()).await;
    refused(stopped, Code::INTERNAL, "forcefully terminated VM vm");
    drop((vm, control));
    shim.ended();
}

async fn metadata(control: &FirecrackerClient) {
    for text in ["{", "[]"] {
        let set = SetVMMetadataRequest {
            Metadata: text.to_owned(),
            ..id::<SetVMMetadataRequest>()
        };
        let set = control.set_vm_metadata(ctx(), &set).await;
        refused(set, Code::INVALID_ARGUMENT, "Metadata ");
    }
    // Without an interface that has the metadata service there is nobody to see it.
    let set = SetVMMetadataRequest {
        Metadata: r#"{"a": {"b": 1}}"#.to_owned(),
        ..id::<SetVMMetadataRequest>()
    };
    let set = control.set_vm_metadata(ctx(), &set).await;
    refused(set, Code::FAILED_PRECONDITION, "The VMM refused PUT /mmds");
    let update = UpdateVMMetadataRequest {
        Metadata: r#"{"a": null}"#.to_owned(),
        ..id::<UpdateVMMetadataRequest>()
    };
    let update = control.update_vm_metadata(ctx(), &update).await;
    refused(
        update,
        Code::FAILED_PRECONDITION,
        "The VMM refused PATCH /mmds",
    );
    let get = id::<GetVMMetadataRequest>();
    let get = control.get_vm_metadata(ctx(), &get).await;
    refused(get, Code::FAILED_PRECONDITION, "The VMM refused GET /mmds");
}

/// Who asks for a VM and goes away before it runs leaves nothing.
#[tokio::test]
async fn a_caller_that_hangs_up_leaves_no_vm() {
    let Some(shim) = Shim::launch() else { return };
    let caller = FirecrackerClient::new(shim.connect().await);
    let vm = VmClient::new(shim.connect().await);
    let call = tokio::spawn(async move { caller.create_vm(ctx(), &create()).await });
    let booting = status(&vm, |status| status.vmm_pid != 0).await;
    assert_eq!(booting.state, "booting");
    let vmm = ProcessId::of(booting.vmm_pid).unwrap();
    // With the call goes its connection.
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    drop(vm);
    shim.ended();
    assert!(!vmm.is_alive());
}

#[tokio::test]
async fn a_vm_that_boots_is_stopped_at_once() {
    let Some(shim) = Shim::launch() else { return };
    let client = shim.connect().await;
    let (vm, control) = (
        VmClient::new(client.clone()),
        FirecrackerClient::new(client),
    );
    let caller = FirecrackerClient::new(shim.connect().await);
    let call = tokio::spawn(async move { caller.create_vm(ctx(), &create()).await });
    status(&vm, |status| status.vmm_pid != 0).await;
    control
        .stop_vm(ctx(), &id::<StopVMRequest>())
        .await
        .unwrap();
    refused(
        call.await.unwrap(),
        Code::UNAVAILABLE,
        "failed to create VM: the VM was stopped",
    );
    drop((vm, control));
    shim.ended();
}

/// A request for the VM.
fn id<R: Request>() -> R {
    R::of("vm")
}

/// A request that names a VM and, as it is made here, nothing else.
trait Request {
    fn of(vm_id: &str) -> Self;
}

macro_rules! requests {
    ($($name:ident)*) => {$(
        impl Request for $name {
            fn of(vm_id: &str) -> Self {
                Self { VMID: vm_id.to_owned(), ..Self::default() }
            }
        }
    )*};
}

requests! {
    GetBalloonConfigRequest GetVMInfoRequest GetVMMetadataRequest PauseVMRequest ResumeVMRequest
    SetVMMetadataRequest StopVMRequest UpdateBalloonRequest UpdateVMMetadataRequest
}
