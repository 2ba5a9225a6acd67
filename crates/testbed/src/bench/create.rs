//! `firecracker-bench create`: CreateVM by a daemon, over and over.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fc_proto::control::{CreateVMRequest, FirecrackerClient, StopVMRequest};
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc;
use fc_proto::vm::VmClient;
use fc_rpc::client::{connect, context};
use fc_testbed::containerd::{Containerd, ContainerdError, Options};
use fc_testbed::runtime_config::{self, Layout};
use fc_vm::address;

use super::CreateArgs;
use super::spans::{Sample, median};

const NAMESPACE: &str = "bench";
/// Bound on each call.
const BOUND: Duration = Duration::from_secs(120);
/// How long the daemon may take to serve.
const START_BOUND: Duration = Duration::from_secs(10);

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    #[error(transparent)]
    Vmm(#[from] fc_client::host::vmm::ChooseError),
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

/// A daemon that is killed when it is not needed any more; its VMs are stopped by then.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn run(args: &CreateArgs) -> Result<(), BenchError> {
    std::fs::create_dir_all(&args.dir).map_err(io_error(&args.dir))?;
    let dir = args.dir.canonicalize().map_err(io_error(&args.dir))?;
    let guest = args.guest.canonicalize().map_err(io_error(&args.guest))?;
    let vmm = fc_client::host::vmm::choose(args.vmm.as_deref())?;
    println!("VMM: {}", vmm.reason);
    let layout = Layout {
        vmm: vmm.path,
        guest,
        dir: dir.clone(),
    };
    let mut config = layout.config();
    // Writing a timeline is no part of CreateVM.
    config.remove("timeline_path");
    let path = dir.join("firecracker-runtime.json");
    runtime_config::write(&path, &config).map_err(io_error(&path))?;
    let bin_dir = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned))
        .unwrap_or_else(|| PathBuf::from("."));
    // Events have to go somewhere.
    let containerd = Containerd::start(Options {
        dir: dir.clone(),
        prefix: None,
        bin_dir: bin_dir.clone(),
        runtime_config: path.clone(),
        extra_config: String::new(),
    })?;
    let program = bin_dir.join("firecracker-control");
    let daemon = Command::new(&program)
        .arg("--config")
        .arg(&path)
        .arg("--containerd-address")
        .arg(containerd.socket())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(io_error(&program))?;
    let _daemon = Daemon(daemon);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(io_error(&dir))?;
    let samples = runtime.block_on(measure(args.repeat, &dir, &containerd.socket()))?;
    print(&samples);
    Ok(())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BenchError {
    let path = path.to_owned();
    move |source| BenchError::Io { path, source }
}

async fn measure(repeat: u32, dir: &Path, containerd: &Path) -> Result<Vec<Sample>, BenchError> {
    let control = serving(&dir.join("control.sock")).await?;
    let mut samples = Vec::new();
    for i in 0..repeat.max(1) {
        let vm_id = format!("bench-{i}");
        let request = CreateVMRequest {
            VMID: vm_id.clone(),
            TimeoutSeconds: 100,
            ..CreateVMRequest::default()
        };
        let begin_ns = now_ns();
        let created = control.create_vm(context(NAMESPACE, BOUND), &request).await;
        let end_ns = now_ns();
        created.map_err(|source| BenchError::Call {
            call: "CreateVM",
            source,
        })?;
        let task = address::task_socket(&containerd.to_string_lossy(), NAMESPACE, &vm_id);
        let socket = address::control_socket(&task);
        let vm = VmClient::new(connect(&socket).await.map_err(io_error(&socket))?);
        let status = vm
            .status(context(NAMESPACE, BOUND), &Empty::default())
            .await;
        let status = status.map_err(|source| BenchError::Call {
            call: "Status",
            source,
        })?;
        samples.push(Sample {
            begin_ns,
            end_ns,
            spans: status.spans,
        });
        drop(vm);
        let request = StopVMRequest {
            VMID: vm_id,
            TimeoutSeconds: 20,
            ..StopVMRequest::default()
        };
        let stopped = control.stop_vm(context(NAMESPACE, BOUND), &request).await;
        stopped.map_err(|source| BenchError::Call {
            call: "StopVM",
            source,
        })?;
    }
    Ok(samples)
}

/// A client of the daemon, as soon as it serves.
async fn serving(socket: &Path) -> Result<FirecrackerClient, BenchError> {
    let up = async {
        loop {
            if let Ok(client) = connect(socket).await {
                return FirecrackerClient::new(client);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(START_BOUND, up)
        .await
        .map_err(|_| BenchError::NotUp)
}

fn print(samples: &[Sample]) {
    println!("CreateVM, median of {} (ms)", samples.len());
    let mut names: Vec<(&str, &str)> = Vec::new();
    for span in samples.iter().flat_map(|sample| &sample.spans) {
        let name = (span.name.as_str(), span.waits_for.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for (name, waits_for) in names {
        let time = median(samples.iter().map(|sample| sample.named(name)));
        let whose = match waits_for {
            "" => "our own",
            other => other,
        };
        println!("  {name:<24} {time:>9.2}  {whose}");
    }
    println!(
        "  {:<24} {:>9.2}",
        "waiting",
        median(samples.iter().map(Sample::waiting))
    );
    println!(
        "  {:<24} {:>9.2}  the parts above that wait for nobody",
        "our own",
        median(samples.iter().map(Sample::own_named))
    );
    println!(
        "  {:<24} {:>9.2}  with what has no name: the shim's process, calls",
        "all that is no waiting",
        median(samples.iter().map(Sample::own))
    );
    println!(
        "  {:<24} {:>9.2}",
        "CreateVM",
        median(samples.iter().map(Sample::total))
    );
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
