//! What a container's drives hold: files on the host, made while the VM boots.

use fc_proto::task::api::{CreateTaskRequest, Mount};
use fc_rootfs::ContainerFiles;
use fc_volume::VolumeFiles;

use super::drives::{guest_path, reclaim};
use super::error::CallError;
use super::shim::Shim;
use crate::bundle::Spec;

/// Type prefix of mounts that exist in the guest only (an in-guest snapshotter's).
const GUEST_MOUNT: &str = "vm:";

/// The files of one container. What was made for it is removed, and what it locked is let go of, when these and
/// the VM's slots have all dropped them: a drive that cannot be detached keeps its files.
pub struct Files {
    /// Its rootfs; `None` for one that is in the guest already.
    pub rootfs: Option<fc_rootfs::Prepared>,
    /// Its mounts, and the spec in which they are the guest's.
    pub volumes: fc_volume::Prepared,
}

/// Makes the files of a container.
///
/// # Errors
/// When its rootfs or one of its mounts cannot be given to a VM; nothing is left then.
pub async fn prepare(
    shim: &Shim,
    request: &CreateTaskRequest,
    spec: &Spec,
) -> Result<Files, CallError> {
    let disk_size = spec.disk_size(&shim.config)?;
    reclaim(shim, &request.id).await?;
    // Both to their end: one that went on alone would still make files when the container is created again.
    let (rootfs, volumes) = tokio::join!(
        rootfs(shim, request, disk_size),
        volumes(shim, request, spec, disk_size)
    );
    Ok(Files {
        rootfs: rootfs?,
        volumes: volumes?,
    })
}

async fn rootfs(
    shim: &Shim,
    request: &CreateTaskRequest,
    disk_size: u64,
) -> Result<Option<fc_rootfs::Prepared>, CallError> {
    let mounts = &request.rootfs;
    if !mounts.is_empty() && mounts.iter().all(|m| m.type_.starts_with(GUEST_MOUNT)) {
        return Ok(None);
    }
    let files = ContainerFiles {
        disk: shim.dir.join(&format!("{}.disk", request.id)),
        disk_size,
        image: shim.dir.join(&format!("{}.image", request.id)),
    };
    let prepared = shim.rootfs.prepare(&as_mounts(mounts), &files).await;
    prepared.map(Some).map_err(|source| CallError::Rootfs {
        task: request.id.clone(),
        source,
    })
}

async fn volumes(
    shim: &Shim,
    request: &CreateTaskRequest,
    spec: &Spec,
    disk_size: u64,
) -> Result<fc_volume::Prepared, CallError> {
    // What the VM's drive mounts hold is the guest's already.
    let vm = shim.spec().await?;
    let guest_paths = vm.drive_mounts.iter().map(|m| m.vm_path.clone().into());
    let volumes = fc_volume::Request {
        guest_dir: guest_path(&request.id, ""),
        guest_paths: guest_paths.collect(),
        files: VolumeFiles {
            copies: shim.dir.join(&format!("{}.copies", request.id)),
            writable_copies: shim.dir.join(&format!("{}.wcopies", request.id)),
            writable_size: disk_size,
        },
    };
    let prepared = shim.volumes.prepare(spec.json(), &volumes).await;
    prepared.map_err(|source| CallError::Volume {
        task: request.id.clone(),
        source: source.into(),
    })
}

/// containerd's mounts of a rootfs, as `fc-rootfs` has them.
pub fn as_mounts(mounts: &[Mount]) -> Vec<fc_rootfs::Mount> {
    let convert = |mount: &Mount| fc_rootfs::Mount {
        fstype: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    };
    mounts.iter().map(convert).collect()
}
