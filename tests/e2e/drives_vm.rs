//! A VM made by the control API, with a `firecracker-control` of the test's own.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fc_proto::NAMESPACE_KEY;
use fc_proto::control::{CreateVMRequest, FirecrackerClient, FirecrackerDriveMount, StopVMRequest};
use fc_proto::ttrpc;
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::context;

use serde_json::{Map, Value};

use crate::fixture::{Flavor, Instance, Setup};

/// Bound on any call.
const BOUND: Duration = Duration::from_secs(90);

/// An instance and its control daemon.
pub struct Controlled {
    pub on: Instance,
    daemon: Child,
    socket: PathBuf,
}

impl Controlled {
    /// Starts both; returns when the daemon serves.
    pub fn start(setup: &Setup, flavor: &Flavor) -> Self {
        Self::with_config(setup, flavor, |_| {})
    }

    /// The same with keys of the configuration changed by `edit`.
    pub fn with_config(
        setup: &Setup,
        flavor: &Flavor,
        edit: impl FnOnce(&mut Map<String, Value>),
    ) -> Self {
        let socket = setup.fresh_dir().join("control.sock");
        let on = Instance::with_config(setup, flavor, |config| {
            edit(config);
            let address = socket.display().to_string();
            config.insert("control_address".to_owned(), address.into());
        });
        let ready = socket.with_file_name("ready");
        let notified = UnixDatagram::bind(&ready).expect("a socket");
        notified.set_read_timeout(Some(BOUND)).expect("a bound");
        let daemon = Command::new(setup.bin_dir().join("firecracker-control"))
            .arg("--config")
            .arg(on.layout.dir.join("firecracker-runtime.json"))
            .arg("--containerd-address")
            .arg(on.containerd.socket())
            .env("NOTIFY_SOCKET", &ready)
            .stdin(Stdio::null())
            .spawn()
            .expect("firecracker-control");
        let mut state = [0; 64];
        let length = notified.recv(&mut state).expect("the daemon says ready");
        assert!(state[..length].starts_with(b"READY=1"));
        Self { on, daemon, socket }
    }

    /// CreateVM.
    pub fn create(&self, request: &CreateVMRequest) -> ttrpc::Result<()> {
        self.call(async |client| {
            let created = client.create_vm(context(), request).await;
            created.map(drop)
        })
    }

    /// StopVM.
    pub fn stop(&self, id: &str) {
        let mut request = StopVMRequest::new();
        request.VMID = id.to_owned();
        request.TimeoutSeconds = 20;
        self.call(async |client| client.stop_vm(context(), &request).await)
            .expect("StopVM");
    }

    /// Any call.
    pub fn call<T>(&self, call: impl AsyncFnOnce(FirecrackerClient) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let address = format!("unix://{}", self.socket.display());
            let client = Client::connect(&address).await.expect("connect");
            call(FirecrackerClient::new(client)).await
        })
    }
}

impl Drop for Controlled {
    fn drop(&mut self) {
        // Its VMs do not need it; it may have ended with the test's failure.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A call's context: the namespace and the bound.
pub fn context() -> context::Context {
    let mut context = context::with_duration(BOUND);
    context.set(NAMESPACE_KEY.to_owned(), vec!["default".to_owned()]);
    context
}

/// A request for a VM with these drive mounts.
pub fn vm(id: &str, drive_mounts: Vec<FirecrackerDriveMount>) -> CreateVMRequest {
    CreateVMRequest {
        VMID: id.to_owned(),
        ContainerCount: 2,
        TimeoutSeconds: 60,
        DriveMounts: drive_mounts,
        ..CreateVMRequest::default()
    }
}
