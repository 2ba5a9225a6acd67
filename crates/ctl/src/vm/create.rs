//! `vm create`: from arguments to a VM whose agent answers.

use std::io;
use std::path::PathBuf;

use clap::Args;
use fc_control::error::ControlError;
use fc_proto::control::{
    CreateVMRequest, CreateVMResponse, DriveExposePolicy, FirecrackerBalloonDevice,
    FirecrackerDriveMount, FirecrackerMachineConfiguration, FirecrackerNetworkInterface,
    FirecrackerRootDrive, JailerConfig,
};
use fc_proto::protobuf::MessageField;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::mount::Mount;
use super::tap::Tap;
use super::{call_error, progress};
use crate::error::CtlError;
use crate::host::Host;
use crate::output::table;

const EXAMPLES: &str = "\
Examples:
  firecracker-ctl vm create web
  firecracker-ctl vm create build --vcpus 4 --memory 2048 --containers 8
  firecracker-ctl vm create db --mount host=/srv/db.img,vm=/data,type=ext4,rw
  firecracker-ctl vm create tenant-1 --jail 1001:1001 --jail-netns /run/netns/tenant-1 --tap tap0";

/// The VM to create. What is not given is as the runtime's configuration says.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CreateArgs {
    /// Id of the VM: letters and digits, joined by single '.', '_' or '-'.
    #[arg(value_name = "VM")]
    id: String,
    /// Virtual CPUs.
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Firecracker's CPU template, such as T2.
    #[arg(long, value_name = "NAME")]
    cpu_template: Option<String>,
    /// Show sibling threads to the guest.
    #[arg(long)]
    smt: bool,
    /// The kernel.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "ARGS")]
    kernel_args: Option<String>,
    /// The root file system's image or block device.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Let the guest write to it.
    #[arg(long, requires = "root")]
    root_writable: bool,
    /// An image or block device of the host mounted in the guest; can be repeated:
    /// `host=PATH,vm=PATH,type=FSTYPE[,rw][,cache=Unsafe|Writeback][,option=MOUNT-OPTION]...`
    #[arg(long, value_name = "SPEC")]
    mount: Vec<Mount>,
    /// A tap device for the guest's network; can be repeated: `NAME[,mac=MAC][,mmds]`. With `mmds` the guest
    /// reaches the VM's metadata through it.
    #[arg(long, value_name = "TAP")]
    tap: Vec<Tap>,
    /// How many containers the VM has room for.
    #[arg(long, value_name = "N", default_value_t = 1)]
    containers: u16,
    /// End the VM with its last task.
    #[arg(long)]
    exit_after_all_tasks: bool,
    /// A balloon of this many MiB at first.
    #[arg(long, value_name = "MIB")]
    balloon: Option<u32>,
    /// Let the guest take memory back from the balloon rather than kill a process.
    #[arg(long, requires = "balloon")]
    balloon_deflate_on_oom: bool,
    /// Have the guest report statistics every so many seconds.
    #[arg(long, value_name = "SECONDS", requires = "balloon")]
    balloon_stats: Option<u32>,
    /// Run the VMM in a jail, as this user and group.
    #[arg(long, value_name = "UID:GID", value_parser = user)]
    jail: Option<(u32, u32)>,
    /// The jailed VMM's network namespace.
    #[arg(long, value_name = "PATH", requires = "jail")]
    jail_netns: Option<PathBuf>,
    /// CPUs that the jailed VMM may use, such as 0,2-3.
    #[arg(long, value_name = "LIST", requires = "jail")]
    jail_cpus: Option<String>,
    /// Memory nodes that the jailed VMM may use.
    #[arg(long, value_name = "LIST", requires = "jail")]
    jail_mems: Option<String>,
    /// The jail's cgroup is below this path [default: /firecracker-containerd].
    #[arg(long, value_name = "PATH", requires = "jail")]
    jail_cgroup: Option<String>,
    /// Show drives to the jail themselves instead of copies.
    #[arg(long, requires = "jail")]
    jail_bind: bool,
    /// A FIFO for the VMM's log, which you read.
    #[arg(long, value_name = "PATH")]
    log_fifo: Option<PathBuf>,
    /// A FIFO for the VMM's metrics, which you read.
    #[arg(long, value_name = "PATH")]
    metrics_fifo: Option<PathBuf>,
    /// How long the VM may take to start, in seconds [default: 60].
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
}

/// A VM that was created.
#[derive(Serialize)]
struct Created {
    id: String,
    namespace: String,
    api_socket: String,
    log_fifo: String,
    metrics_fifo: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cgroup: String,
}

/// Creates the VM.
///
/// # Errors
/// CreateVM's. A VM that this program was creating when it was interrupted is ended.
pub async fn run(host: &Host, args: &CreateArgs) -> Result<(), CtlError> {
    let request = request(host, args);
    let control = host.control().await?;
    // From before the call on: what ends this program ends the VM that it is creating.
    let interrupted = interrupted().map_err(CtlError::Runtime)?;
    let answer = match &control.own {
        Some(own) => {
            let create = own.create_vm_until(&host.namespace, request, interrupted);
            match progress::show(host, &args.id, create).await {
                Err(ControlError::GivenUp { .. }) => return Err(CtlError::Interrupted),
                answer => answer.map_err(ControlError::into_rpc),
            }
        }
        None => {
            let create = control.client.create_vm(host.context(), &request);
            tokio::select! {
                answer = progress::show(host, &args.id, create) => answer,
                // The call ends with its connection, which this process holds open, and the VM with its call.
                () = interrupted => return Err(CtlError::Interrupted),
            }
        }
    };
    let created = created(host, answer.map_err(call_error)?);
    host.output.print(&created, text);
    Ok(())
}

/// Waits for ctrl-c or the signal by which other programs end this one; either counts from now on.
fn interrupted() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn created(host: &Host, answer: CreateVMResponse) -> Created {
    Created {
        id: answer.VMID,
        namespace: host.namespace.clone(),
        api_socket: answer.SocketPath,
        log_fifo: answer.LogFifoPath,
        metrics_fifo: answer.MetricsFifoPath,
        cgroup: answer.CgroupPath,
    }
}

fn text(vm: &Created) -> String {
    let mut rows = vec![
        ["VM", vm.id.as_str()],
        ["namespace", vm.namespace.as_str()],
        ["API socket", vm.api_socket.as_str()],
    ];
    if !vm.cgroup.is_empty() {
        rows.push(["cgroup", vm.cgroup.as_str()]);
    }
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.map(str::to_owned).to_vec())
        .collect();
    format!(
        "{}Now: ctr -n {} run --runtime aws.firecracker --annotation aws.firecracker.vm.id={} IMAGE NAME",
        table(&rows),
        vm.namespace,
        vm.id
    )
}

fn request(host: &Host, args: &CreateArgs) -> CreateVMRequest {
    let config = &host.config;
    CreateVMRequest {
        VMID: args.id.clone(),
        MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
            CPUTemplate: args.cpu_template.clone().unwrap_or_default(),
            HtEnabled: args.smt || config.smt_enabled,
            MemSizeMib: args.memory.unwrap_or(config.mem_size_mib),
            VcpuCount: args.vcpus.unwrap_or(config.vcpu_count),
            ..FirecrackerMachineConfiguration::default()
        }),
        KernelImagePath: path(args.kernel.as_ref()),
        KernelArgs: args.kernel_args.clone().unwrap_or_default(),
        RootDrive: MessageField(args.root.as_ref().map(|root| {
            Box::new(FirecrackerRootDrive {
                HostPath: path(Some(root)),
                IsWritable: args.root_writable,
                ..FirecrackerRootDrive::default()
            })
        })),
        DriveMounts: args.mount.iter().map(FirecrackerDriveMount::from).collect(),
        NetworkInterfaces: args
            .tap
            .iter()
            .map(FirecrackerNetworkInterface::from)
            .collect(),
        ContainerCount: args.containers.into(),
        ExitAfterAllTasksDeleted: args.exit_after_all_tasks,
        JailerConfig: MessageField(args.jail.map(|user| Box::new(jail(args, user)))),
        TimeoutSeconds: args.timeout.unwrap_or_default(),
        LogFifoPath: path(args.log_fifo.as_ref()),
        MetricsFifoPath: path(args.metrics_fifo.as_ref()),
        BalloonDevice: MessageField(args.balloon.map(|amount| {
            Box::new(FirecrackerBalloonDevice {
                AmountMib: amount.into(),
                DeflateOnOom: args.balloon_deflate_on_oom,
                StatsPollingIntervals: args.balloon_stats.unwrap_or_default().into(),
                ..FirecrackerBalloonDevice::default()
            })
        })),
        ..CreateVMRequest::default()
    }
}

fn jail(args: &CreateArgs, (uid, gid): (u32, u32)) -> JailerConfig {
    JailerConfig {
        UID: uid,
        GID: gid,
        NetNS: path(args.jail_netns.as_ref()),
        CPUs: args.jail_cpus.clone().unwrap_or_default(),
        Mems: args.jail_mems.clone().unwrap_or_default(),
        CgroupPath: args.jail_cgroup.clone().unwrap_or_default(),
        DriveExposePolicy: if args.jail_bind {
            DriveExposePolicy::BIND
        } else {
            DriveExposePolicy::COPY
        }
        .into(),
        ..JailerConfig::default()
    }
}

/// The daemon's directory is not ours: paths travel absolute.
fn path(path: Option<&PathBuf>) -> String {
    path.map_or_else(String::new, |path| {
        std::path::absolute(path)
            .unwrap_or_else(|_| path.clone())
            .display()
            .to_string()
    })
}

fn user(text: &str) -> Result<(u32, u32), String> {
    let (uid, gid) = text.split_once(':').ok_or("expected UID:GID")?;
    let number = |text: &str| text.parse::<u32>().map_err(|e| format!("{text:?}: {e}"));
    Ok((number(uid)?, number(gid)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        assert_eq!(user("1000:100"), Ok((1000, 100)));
        for bad in ["1000", "a:1", "1:-1", ""] {
            assert!(user(bad).is_err(), "{bad:?}");
        }
    }
}
