//! `start`: finds the shim of the task's VM or starts it, and prints its address.

use std::io;
use std::path::Path;

use fc_config::Config;
use fc_proto::control::{CreateVMRequest, FirecrackerMachineConfiguration};
use fc_proto::protobuf::MessageField;
use fc_vm::address;
use fc_vm::dir::VmDir;
use fc_vm::ident;
use fc_vm::launch::{Launch, ShimLog, launch};
use fc_vm::list;
use fc_vm::timeline::{Timeline, now_ns};
use fc_volume::{CopySettings, Volumes};

use crate::args::Args;
use crate::bundle::{self, BundleError, Spec};
use crate::daemon::{self, Answer, DaemonError};
use crate::stopped;

/// Why no shim was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime's configuration.
    #[error(transparent)]
    Config(#[from] fc_config::ConfigError),
    /// The task's bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The namespace, the task's id or the annotation is no identifier.
    #[error("Invalid {what}")]
    Identifier {
        /// Which of them.
        what: &'static str,
        /// Why.
        source: ident::InvalidIdentifier,
    },
    /// The shim could not be started.
    #[error(transparent)]
    Launch(#[from] fc_vm::launch::LaunchError),
    /// The container's mounts.
    #[error(transparent)]
    Volumes(#[from] fc_volume::VolumeError),
    /// The control daemon could not start the shim.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The async runtime, for an event.
    #[error("Cannot tell containerd of the end of the VM's former shim")]
    Tell(#[source] io::Error),
    /// Something about this process.
    #[error("Cannot find out {what}")]
    Process {
        /// What was asked.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The VM that a task is to run in.
struct Target {
    vm_id: String,
    /// Only this task: its own VM, which ends with it.
    single_task: bool,
}

/// Runs `start` in the bundle directory; answers the shim's address.
pub fn run(args: &Args) -> Result<String, StartError> {
    let begin = now_ns();
    let bundle = std::env::current_dir().map_err(|source| StartError::Process {
        what: "the bundle directory",
        source,
    })?;
    let config = Config::load()?.config;
    check("namespace", &args.namespace)?;
    check("task id", &args.id)?;
    let spec = Spec::read(&bundle)?;
    let target = target(&spec)?;
    let timeline = Timeline::new(config.timeline_path.as_deref(), &target.vm_id);
    timeline.at(begin, &args.id, "start_begin");

    let socket = address::task_socket(&args.address, &args.namespace, &target.vm_id);
    let address = address::url(&socket);
    let launched = write_files(&bundle, &address, &target)
        .map_err(StartError::from)
        .and_then(|()| start_vm(args, &config, &spec, &bundle, &target));
    if let Err(error) = launched {
        for name in [bundle::ADDRESS, bundle::VM_ID_FILE] {
            // Gone or not, containerd removes the bundle next.
            let _ = std::fs::remove_file(bundle.join(name));
        }
        return Err(error);
    }
    timeline.task(&args.id, "start_end");
    Ok(address)
}

fn target(spec: &Spec) -> Result<Target, StartError> {
    match spec.vm_id() {
        Some(vm_id) => {
            check("VM id in annotation aws.firecracker.vm.id", vm_id)?;
            Ok(Target {
                vm_id: vm_id.to_owned(),
                single_task: false,
            })
        }
        None => {
            let uuid =
                std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(|source| {
                    StartError::Process {
                        what: "a random VM id",
                        source,
                    }
                })?;
            Ok(Target {
                vm_id: uuid.trim().to_owned(),
                single_task: true,
            })
        }
    }
}

fn write_files(bundle: &Path, address: &str, target: &Target) -> Result<(), BundleError> {
    bundle::write(bundle, bundle::VM_ID_FILE, &target.vm_id)?;
    bundle::write(bundle, bundle::ADDRESS, address)
}

/// Has the daemon start the VM's shim, or starts it, or finds that it runs.
fn start_vm(
    args: &Args,
    config: &Config,
    spec: &Spec,
    bundle: &Path,
    target: &Target,
) -> Result<(), StartError> {
    let request = request(config, spec, target)?;
    if daemon::launch(&config.control_address, args, &request)? == Answer::None {
        bury(args, config, target)?;
        launch(&launch_of(args, config, bundle, target, request)?)?;
    }
    Ok(())
}

/// Undoes what a killed shim of the VM left. `launch` would do that too, but tell nobody of the former VM's end.
fn bury(args: &Args, config: &Config, target: &Target) -> Result<(), StartError> {
    let burial = list::bury(&vm_dir(config, &args.namespace, &target.vm_id)?);
    if burial.ended_vm {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Tell)?
            .block_on(stopped::tell(args, &target.vm_id));
    }
    // What could not be undone `launch` tries again, and reports.
    Ok(())
}

fn launch_of(
    args: &Args,
    config: &Config,
    bundle: &Path,
    target: &Target,
    request: CreateVMRequest,
) -> Result<Launch, StartError> {
    let log = bundle.join(bundle::LOG);
    Ok(Launch {
        base: config.shim_base_dir.clone(),
        namespace: args.namespace.clone(),
        vm_id: target.vm_id.clone(),
        containerd_address: args.address.clone(),
        ttrpc_address: ttrpc_address(args),
        program: std::env::current_exe().map_err(|source| StartError::Process {
            what: "the shim's own path",
            source,
        })?,
        config: None,
        log: if log.exists() {
            ShimLog::File(log)
        } else {
            ShimLog::Discard
        },
        debug: args.debug,
        request: Some(request),
    })
}

/// The VM to create when there is none yet.
fn request(config: &Config, spec: &Spec, target: &Target) -> Result<CreateVMRequest, StartError> {
    let size = spec.vm_size(config)?;
    let copies = CopySettings::new(u64::from(config.volume_copy_limit_mib) << 20);
    let volumes = Volumes::new(copies).slots(spec.json())?;
    let count = if target.single_task {
        1
    } else {
        i32::try_from(config.default_container_count).unwrap_or(i32::MAX)
    };
    Ok(CreateVMRequest {
        VMID: target.vm_id.clone(),
        MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
            HtEnabled: config.smt_enabled,
            MemSizeMib: size.memory_mib,
            VcpuCount: size.vcpus,
            ..FirecrackerMachineConfiguration::default()
        }),
        ContainerCount: count,
        VolumeSlots: volumes.writable,
        // Each container's second read-only slot is for its copies.
        ReadOnlyVolumeSlots: volumes.read_only.saturating_sub(1),
        ExitAfterAllTasksDeleted: target.single_task,
        ..CreateVMRequest::default()
    })
}

/// containerd's ttrpc address: what it says, else what it does by default.
pub fn ttrpc_address(args: &Args) -> String {
    match std::env::var("TTRPC_ADDRESS") {
        Ok(address) if !address.is_empty() => address,
        _ => format!("{}.ttrpc", args.address),
    }
}

/// The directory of a VM, as `start` and `delete` find it.
pub fn vm_dir(config: &Config, namespace: &str, vm_id: &str) -> Result<VmDir, StartError> {
    VmDir::new(&config.shim_base_dir, namespace, vm_id)
        .map_err(|source| StartError::Identifier { what: "VM", source })
}

fn check(what: &'static str, id: &str) -> Result<(), StartError> {
    ident::validate(id).map_err(|source| StartError::Identifier { what, source })
}
