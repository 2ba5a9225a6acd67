//! A private containerd and a control daemon to measure with.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fc_proto::control::{CreateVMRequest, FirecrackerClient, StopVMRequest};
use fc_proto::ttrpc;
use fc_proto::vm::VmClient;
use fc_rpc::client::{connect, context};
use fc_testbed::containerd::{Containerd, ContainerdError};
use fc_testbed::image::ImageError;
use fc_testbed::setup::{Setup, SetupError};
use fc_vm::address;
use serde_json::{Map, Value};

use super::VmArgs;

/// Of all VMs and containers; `ctr`'s own.
pub const NAMESPACE: &str = "default";
/// Bound on each call.
pub const BOUND: Duration = Duration::from_secs(120);
/// How long the daemon may take to serve.
const START_BOUND: Duration = Duration::from_secs(60);

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Rootfs(#[from] fc_rootfs::RootfsError),
    #[error("Cannot use {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("firecracker-control does not serve")]
    NotUp,
    #[error("{call} failed")]
    Call {
        call: &'static str,
        #[source]
        source: ttrpc::Error,
    },
}

pub fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BenchError {
    let path = path.to_owned();
    move |source| BenchError::Io { path, source }
}

pub fn call_error(call: &'static str) -> impl FnOnce(ttrpc::Error) -> BenchError {
    move |source| BenchError::Call { call, source }
}

/// A runtime for calls.
pub fn runtime(dir: &Path) -> Result<tokio::runtime::Runtime, BenchError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(io_error(dir))
}

/// A daemon that is killed when it is not needed any more; its VMs are stopped by then.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both, until dropped.
pub struct Host {
    _daemon: Daemon,
    pub containerd: Containerd,
    pub dir: PathBuf,
}

impl Host {
    /// Starts both in the directory of `args`, with keys of the configuration changed by `edit`.
    pub fn start(
        args: &VmArgs,
        edit: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<Self, BenchError> {
        let setup = Setup {
            dir: &args.dir,
            guest: &args.guest,
            vmm: args.vmm.as_deref(),
            // Whatever it is: events have to go somewhere.
            containerd: None,
        };
        let started = setup.start(|config| {
            // Writing a timeline is no part of what is measured.
            config.remove("timeline_path");
            edit(config);
        })?;
        let program = started.bin_dir.join("firecracker-control");
        let daemon = Command::new(&program)
            .arg("--config")
            .arg(&started.config)
            .arg("--containerd-address")
            .arg(started.containerd.socket())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(io_error(&program))?;
        Ok(Self {
            _daemon: Daemon(daemon),
            containerd: started.containerd,
            dir: started.layout.dir,
        })
    }

    /// A client of the daemon, as soon as it serves.
    pub async fn control(&self) -> Result<FirecrackerClient, BenchError> {
        let socket = self.dir.join("control.sock");
        let up = async {
            loop {
                if let Ok(client) = connect(&socket).await {
                    return FirecrackerClient::new(client);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(START_BOUND, up)
            .await
            .map_err(|_| BenchError::NotUp)
    }

    /// A client of a VM's shim.
    pub async fn vm(&self, id: &str) -> Result<VmClient, BenchError> {
        let containerd = self.containerd.socket();
        let task = address::task_socket(&containerd.to_string_lossy(), NAMESPACE, id);
        let socket = address::control_socket(&task);
        Ok(VmClient::new(
            connect(&socket).await.map_err(io_error(&socket))?,
        ))
    }
}

/// A VM with one slot for containers.
pub async fn create_vm(control: &FirecrackerClient, id: &str) -> Result<(), BenchError> {
    let request = CreateVMRequest {
        VMID: id.to_owned(),
        TimeoutSeconds: 100,
        ..CreateVMRequest::default()
    };
    let created = control.create_vm(context(NAMESPACE, BOUND), &request).await;
    created.map(drop).map_err(call_error("CreateVM"))
}

/// Its end.
pub async fn stop_vm(control: &FirecrackerClient, id: &str) -> Result<(), BenchError> {
    let request = StopVMRequest {
        VMID: id.to_owned(),
        TimeoutSeconds: 20,
        ..StopVMRequest::default()
    };
    let stopped = control.stop_vm(context(NAMESPACE, BOUND), &request).await;
    stopped.map(drop).map_err(call_error("StopVM"))
}
