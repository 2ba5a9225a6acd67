//! A stand-in for the shim of a VM: everything between it and the control service is real (its
//! start, lock, sockets, log and end), the VM is not. What it does is in the VM's id.

use std::os::fd::{AsFd, FromRawFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;
use std::sync::Arc;

use async_trait::async_trait;
use fc_proto::control::*;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::protobuf::{Message, MessageField};
use fc_proto::ttrpc::asynchronous::transport::Listener;
use fc_proto::ttrpc::asynchronous::{Server, TtrpcContext};
use fc_proto::ttrpc::{self, Code, get_status};
use fc_rpc::incoming::{Connections, Incoming};
use fc_vm::dir::VmDir;
use fc_vm::launch::{CONTROL_FD, LOCK_FD, VM_ID_ENV};
use fc_vm::lock::ShimLock;
use fc_vm::process::ProcessId;
use fc_vm::state::{self, State};
use rustix::io::FdFlags;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

/// Whether this process was started as a shim.
pub fn is_asked_for() -> bool {
    std::env::var_os(VM_ID_ENV).is_some()
}

/// The VM: what its id says.
struct Vm {
    dir: VmDir,
    request: CreateVMRequest,
    end: Notify,
    connections: Connections,
}

impl Vm {
    fn is(&self, what: &str) -> bool {
        self.dir.vm_id().starts_with(what)
    }

    /// Says what it does on a datagram socket beside the base directory.
    fn say(&self, what: &str) {
        let base = self.dir.path().parent().expect("the base");
        let line = format!("{} {what}", self.name());
        // The test may have ended.
        let _ = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to(line.as_bytes(), base.with_file_name("said")));
    }

    fn name(&self) -> String {
        format!("{}/{}", self.dir.namespace(), self.dir.vm_id())
    }
}

/// Is the shim until its end.
pub fn run() {
    let dir = std::env::current_dir().expect("the VM's directory");
    let name = dir.file_name().and_then(|n| n.to_str()).expect("its name");
    let (namespace, vm_id) = name.split_once('#').expect("namespace#id");
    let dir = VmDir::new(dir.parent().expect("the base"), namespace, vm_id).expect("names");
    eprintln!("stand-in for {vm_id} speaking");
    if vm_id.starts_with("dies") {
        eprintln!("no such luck");
        std::process::exit(3);
    }
    let request = CreateVMRequest::parse_from_reader(&mut std::io::stdin()).expect("a request");
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(serve(dir, request));
}

async fn serve(dir: VmDir, request: CreateVMRequest) {
    // SAFETY: the launcher passed these descriptors, and each is adopted once.
    let (control, lock) = unsafe {
        (
            UnixListener::from_raw_fd(CONTROL_FD),
            std::fs::File::from_raw_fd(LOCK_FD),
        )
    };
    for fd in [control.as_fd(), lock.as_fd()] {
        rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC).expect("not for children");
    }
    let _lock = ShimLock::inherited(lock);
    // A VMM, as far as anybody who cleans up can tell.
    let mut vmm = Command::new("sleep").arg("600").spawn().expect("sleep");
    let mut state = State::load(&dir).expect("a record").expect("a record");
    state.vmm = ProcessId::of(vmm.id());
    state.store(&dir).expect("a record");
    let vm = Arc::new(Vm {
        dir,
        request,
        end: Notify::new(),
        connections: Connections::default(),
    });
    let mut terminate = signal(SignalKind::terminate()).expect("a signal handler");
    vm.say(&format!("runs {} {}", std::process::id(), vmm.id()));
    let _server = if vm.is("silent") {
        None
    } else {
        let incoming = Incoming::new(control, vm.connections.clone()).expect("a listener");
        let mut server = Server::new()
            .add_listener(Listener::new(incoming))
            .register_service(create_firecracker(Arc::new(Calls(Arc::clone(&vm)))));
        server.start().await.expect("a server");
        Some(server)
    };
    tokio::select! {
        _ = terminate.recv() => vm.say("terminated"),
        () = vm.end.notified() => {}
    }
    if vm.is("stays") {
        std::future::pending::<()>().await;
    }
    let errors = state::undo(&vm.dir);
    assert!(errors.is_empty(), "{errors:?}");
    vmm.wait().expect("the VMM was killed");
    vm.connections.all_closed().await;
    vm.say("ends");
}

struct Calls(Arc<Vm>);

fn status<T>(code: Code, text: &str) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(get_status(code, text)))
}

impl Calls {
    /// Passed on faithfully: the VM's own id and its own namespace.
    fn check(&self, context: &TtrpcContext, vm_id: &str) -> ttrpc::Result<Empty> {
        let namespace = context.metadata.get(fc_proto::NAMESPACE_KEY);
        if vm_id == self.0.dir.vm_id()
            && namespace.is_some_and(|n| n == &[self.0.dir.namespace().to_owned()])
        {
            Ok(Empty::default())
        } else {
            status(Code::INTERNAL, "not for me")
        }
    }
}

#[async_trait]
impl Firecracker for Calls {
    async fn get_vm_info(
        &self,
        context: &TtrpcContext,
        request: GetVMInfoRequest,
    ) -> ttrpc::Result<GetVMInfoResponse> {
        self.check(context, &request.VMID)?;
        let vm = &self.0;
        vm.say("asked");
        if vm.is("hangs") {
            std::future::pending::<()>().await;
        }
        if vm.is("fails") {
            vm.end.notify_one();
            return status(Code::DEADLINE_EXCEEDED, "didn't start");
        }
        Ok(GetVMInfoResponse {
            VMID: request.VMID,
            SocketPath: vm.name(),
            LogFifoPath: "log".to_owned(),
            MetricsFifoPath: "metrics".to_owned(),
            CgroupPath: format!("{} MiB", vm.request.MachineCfg.MemSizeMib),
            ..GetVMInfoResponse::default()
        })
    }

    async fn stop_vm(
        &self,
        context: &TtrpcContext,
        request: StopVMRequest,
    ) -> ttrpc::Result<Empty> {
        self.check(context, &request.VMID)?;
        let vm = &self.0;
        if vm.is("crashes") {
            std::process::abort();
        }
        vm.end.notify_one();
        if vm.is("forced") {
            return status(Code::INTERNAL, "forcefully terminated VM");
        }
        Ok(Empty::default())
    }

    async fn pause_vm(&self, c: &TtrpcContext, r: PauseVMRequest) -> ttrpc::Result<Empty> {
        self.check(c, &r.VMID)
    }

    async fn resume_vm(&self, c: &TtrpcContext, r: ResumeVMRequest) -> ttrpc::Result<Empty> {
        self.check(c, &r.VMID)
    }

    async fn set_vm_metadata(
        &self,
        c: &TtrpcContext,
        r: SetVMMetadataRequest,
    ) -> ttrpc::Result<Empty> {
        self.check(c, &r.VMID)
    }

    async fn update_vm_metadata(
        &self,
        c: &TtrpcContext,
        r: UpdateVMMetadataRequest,
    ) -> ttrpc::Result<Empty> {
        self.check(c, &r.VMID)
    }

    async fn get_vm_metadata(
        &self,
        c: &TtrpcContext,
        r: GetVMMetadataRequest,
    ) -> ttrpc::Result<GetVMMetadataResponse> {
        self.check(c, &r.VMID)?;
        Ok(GetVMMetadataResponse {
            Metadata: self.0.name(),
            ..GetVMMetadataResponse::default()
        })
    }

    async fn get_balloon_config(
        &self,
        c: &TtrpcContext,
        r: GetBalloonConfigRequest,
    ) -> ttrpc::Result<GetBalloonConfigResponse> {
        self.check(c, &r.VMID)?;
        Ok(GetBalloonConfigResponse {
            BalloonConfig: MessageField::some(FirecrackerBalloonDevice::default()),
            ..GetBalloonConfigResponse::default()
        })
    }

    async fn update_balloon(
        &self,
        c: &TtrpcContext,
        r: UpdateBalloonRequest,
    ) -> ttrpc::Result<Empty> {
        self.check(c, &r.VMID)
    }

    async fn get_balloon_stats(
        &self,
        c: &TtrpcContext,
        r: GetBalloonStatsRequest,
    ) -> ttrpc::Result<GetBalloonStatsResponse> {
        self.check(c, &r.VMID)?;
        Ok(GetBalloonStatsResponse {
            TargetMib: 7,
            ..GetBalloonStatsResponse::default()
        })
    }

    async fn update_balloon_stats(
        &self,
        c: &TtrpcContext,
        r: UpdateBalloonStatsRequest,
    ) -> ttrpc::Result<Empty> {
        self.check(c, &r.VMID)
    }
}
