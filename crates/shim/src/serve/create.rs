//! Create: from containerd's rootfs and FIFOs to a container in the guest.

use std::path::PathBuf;
use std::sync::Arc;

use fc_drives::{Attach, Kind};
use fc_proto::guest::{BUNDLE_ROOT, EXTRA_DATA_TYPE_URL, ExtraData, feature};
use fc_proto::protobuf::well_known_types::any::Any;
use fc_proto::protobuf::{Message, MessageField};
use fc_proto::task::api::{CreateTaskRequest, Mount, WaitRequest};
use fc_proto::ttrpc::Error as RpcError;
use fc_rootfs::{
    ContainerFiles, DISK_FSTYPE, DISK_UPPER, DISK_WORK, Device, IMAGE_FSTYPE, Prepared,
};
use fc_vm::ident;
use fc_vm::machine::chain;

use super::error::CallError;
use super::io::{self, Stdio};
use super::process::{Exit, Process};
use super::shim::{Running, Shim};
use super::stop;
use super::tasks::Task;
use crate::bundle::{self, BundleError};

/// Type prefix of mounts that exist in the guest only (an in-guest snapshotter's).
const GUEST_MOUNT: &str = "vm:";
const MIB: u64 = 1 << 20;

/// Creates a container; answers the process id to show. Fails without a trace: the same id can
/// be created again.
///
/// # Errors
/// What went wrong first; the VM's own failure before anything else.
pub async fn create(shim: &Arc<Shim>, request: CreateTaskRequest) -> Result<u32, CallError> {
    ident::validate(&request.id)?;
    if !request.checkpoint.is_empty() {
        return Err(CallError::Unsupported(
            "Restoring a container from a checkpoint is not supported".to_owned(),
        ));
    }
    let reservation = shim.tasks.reserve(&request.id)?;
    let spec = read_spec(&request)?;
    // The rootfs is prepared while the VM boots.
    let (running, prepared) = tokio::join!(shim.vm(), prepare(shim, &request));
    let running = running?;
    let prepared = prepared.inspect_err(|_| stop::expect_shutdown(shim, &running))?;
    shim.timeline.task(&request.id, "rootfs_prepared");

    let created = create_in(shim, &running, &request, spec, prepared.as_ref()).await;
    let (process, guest_pid) = match created {
        Ok(created) => created,
        Err(error) => {
            detach(&running, &request.id).await;
            stop::expect_shutdown(shim, &running);
            return Err(error);
        }
    };
    let task = Task::new(
        PathBuf::from(&request.bundle),
        request.rootfs,
        Arc::clone(&process),
        prepared,
    );
    shim.timeline.task(&request.id, "task_created");
    reservation.fill(Arc::new(task));
    watch_exit(shim, &running, process);
    Ok(shim.pid(&running, guest_pid))
}

fn read_spec(request: &CreateTaskRequest) -> Result<Vec<u8>, BundleError> {
    let path = PathBuf::from(&request.bundle).join(bundle::CONFIG);
    std::fs::read(&path).map_err(|source| BundleError::File {
        action: "read",
        path,
        source,
    })
}

/// Makes drives' files of the rootfs; `None` for one that is in the guest already.
async fn prepare(shim: &Shim, request: &CreateTaskRequest) -> Result<Option<Prepared>, CallError> {
    let mounts = &request.rootfs;
    if !mounts.is_empty() && mounts.iter().all(|m| m.type_.starts_with(GUEST_MOUNT)) {
        return Ok(None);
    }
    let mounts: Vec<_> = mounts
        .iter()
        .map(|m| fc_rootfs::Mount {
            fstype: m.type_.clone(),
            source: m.source.clone(),
            target: m.target.clone(),
            options: m.options.clone(),
        })
        .collect();
    let files = ContainerFiles {
        disk: shim.dir.join(&format!("{}.disk", request.id)),
        disk_size: u64::from(shim.config.writable_disk_size_mib) * MIB,
        image: shim.dir.join(&format!("{}.image", request.id)),
    };
    let prepared = shim.rootfs.prepare(&mounts, &files).await;
    prepared.map(Some).map_err(|source| CallError::Rootfs {
        task: request.id.clone(),
        source,
    })
}

/// Attaches the drives and creates the container in the guest. Its drives are the caller's to
/// detach when this fails.
async fn create_in(
    shim: &Arc<Shim>,
    running: &Running,
    request: &CreateTaskRequest,
    spec: Vec<u8>,
    prepared: Option<&Prepared>,
) -> Result<(Arc<Process>, u32), CallError> {
    let rootfs = match prepared {
        Some(prepared) => attach(running, &request.id, prepared).await?,
        None => request.rootfs.clone(),
    };
    shim.timeline.task(&request.id, "rootfs_attached");

    let stdio = Stdio {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let streams = io::Prepared::new(&stdio, &running.ports)?;
    let extra = ExtraData {
        JsonSpec: spec,
        RuncOptions: request.options.clone(),
        ..extra_data(running, &streams)
    };
    let mut guest_request = CreateTaskRequest {
        id: request.id.clone(),
        bundle: guest_path(&request.id, ""),
        rootfs,
        terminal: request.terminal,
        options: MessageField::some(extra_any(&extra)?),
        ..CreateTaskRequest::default()
    };
    [
        guest_request.stdin,
        guest_request.stdout,
        guest_request.stderr,
    ] = wanted(&streams);
    let process_io = streams.start({
        let shim = Arc::clone(shim);
        let id = request.id.clone();
        move || shim.timeline.task(&id, "first_output")
    });
    let guest = running.machine.guest();
    let created = guest.tasks().create(guest.context(), &guest_request).await;
    let created = created.map_err(|error| lost(shim, error))?;
    let process = Process::new(&request.id, "", stdio, process_io);
    Ok((Arc::new(process), created.pid))
}

/// What the agent must know of a process's streams.
pub fn extra_data(running: &Running, streams: &io::Prepared) -> ExtraData {
    let [stdin, stdout, stderr] = streams.ports;
    ExtraData {
        StdinPort: stdin,
        StdoutPort: stdout,
        StderrPort: stderr,
        HostListens: running.ports.host_listens,
        ..ExtraData::default()
    }
}

/// Wraps [`ExtraData`] as the original does.
pub fn extra_any(extra: &ExtraData) -> Result<Any, CallError> {
    Ok(Any {
        type_url: EXTRA_DATA_TYPE_URL.to_owned(),
        value: extra.write_to_bytes()?,
        ..Any::default()
    })
}

/// Names of the streams for the guest, where a name means "wanted". The host's paths stay here.
pub fn wanted(streams: &io::Prepared) -> [String; 3] {
    let names = ["stdin", "stdout", "stderr"];
    std::array::from_fn(|i| match streams.ports[i] {
        0 => String::new(),
        _ => names[i].to_owned(),
    })
}

/// A failed call to the guest. When the VM is gone, that is the better explanation.
pub fn lost(shim: &Shim, error: RpcError) -> CallError {
    match (&error, shim.running()) {
        (RpcError::RpcStatus(_), _) | (_, Ok(_)) => CallError::Guest(error),
        (_, Err(gone)) => gone,
    }
}

/// Follows the process until it ends.
pub fn watch_exit(shim: &Arc<Shim>, running: &Arc<Running>, process: Arc<Process>) {
    let shim = Arc::clone(shim);
    let running = Arc::clone(running);
    tokio::spawn(async move {
        let guest = running.machine.guest();
        let request = WaitRequest {
            id: process.task_id.clone(),
            exec_id: process.exec_id.clone(),
            ..WaitRequest::default()
        };
        match guest.tasks().wait(guest.context(), &request).await {
            Ok(response) => {
                if process.exec_id.is_empty() {
                    shim.timeline.task(&process.task_id, "task_exited");
                }
                process.set_exit(Exit {
                    status: response.exit_status,
                    at: response.exited_at.unwrap_or_default(),
                });
            }
            // Deleted before it ran; or the VM ended, which is told elsewhere.
            Err(error) => tracing::debug!(
                task = process.task_id,
                exec = process.exec_id,
                "The guest does not tell of the process's end: {error}"
            ),
        }
    });
}

/// Attaches a container's drives; answers the mounts that are left for the agent.
async fn attach(running: &Running, id: &str, prepared: &Prepared) -> Result<Vec<Mount>, CallError> {
    let drives = running.machine.drives();
    let attach =
        async |kind, host_path: &std::path::Path, to: &str, fstype: &str, options: &[String]| {
            let request = Attach {
                host_path: host_path.to_owned(),
                destination: guest_path(id, to),
                fstype: fstype.to_owned(),
                options: options.to_vec(),
                owner: id.to_owned(),
            };
            let attached = drives.attach(kind, request).await;
            attached.map(drop).map_err(|source| CallError::Drive {
                task: id.to_owned(),
                source,
            })
        };
    match prepared {
        Prepared::Device(Device {
            source,
            fstype,
            options,
            read_only,
        }) => {
            let kind = if *read_only {
                Kind::ReadOnly
            } else {
                Kind::Writable
            };
            attach(kind, source, "/rootfs", fstype, options).await?;
            Ok(Vec::new())
        }
        Prepared::Layers { image, disk: None } => {
            attach(Kind::ReadOnly, image.path(), "/rootfs", IMAGE_FSTYPE, &[]).await?;
            Ok(Vec::new())
        }
        Prepared::Layers {
            image,
            disk: Some(disk),
        } => {
            if !running.machine.guest().has(feature::ROOTFS_MOUNTS) {
                return Err(CallError::Unsupported(
                    "The agent in this root image only takes a block device as a container's rootfs: use a block snapshotter, or a root image of this version".to_owned(),
                ));
            }
            let image = attach(Kind::ReadOnly, image.path(), "/image", IMAGE_FSTYPE, &[]);
            let disk = attach(Kind::Writable, disk.path(), "/disk", DISK_FSTYPE, &[]);
            let (image, disk) = tokio::join!(image, disk);
            image.and(disk)?;
            Ok(vec![overlay(id)])
        }
    }
}

/// The container's rootfs of its two drives.
fn overlay(id: &str) -> Mount {
    let disk = guest_path(id, "/disk");
    Mount {
        type_: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: vec![
            format!("lowerdir={}", guest_path(id, "/image")),
            format!("upperdir={disk}/{DISK_UPPER}"),
            format!("workdir={disk}/{DISK_WORK}"),
        ],
        ..Mount::default()
    }
}

/// Detaches whatever drives the container has. What fails is logged and kept from further use.
pub async fn detach(running: &Running, id: &str) {
    if let Err(error) = running.machine.drives().detach_owner(id).await {
        tracing::error!(task = id, "{}", chain(&error));
    }
}

fn guest_path(id: &str, below: &str) -> String {
    format!("{BUNDLE_ROOT}/{id}{below}")
}
