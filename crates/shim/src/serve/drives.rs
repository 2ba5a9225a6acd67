//! A container's drives: its files attached to the VM's slots and mounted in the guest.

use std::path::Path;
use std::sync::Arc;

use fc_drives::{Attach, DriveError, Held, Kind, SlotState};
use fc_proto::guest::{BUNDLE_ROOT, feature};
use fc_proto::task::api::Mount;
use fc_rootfs::{DISK_FSTYPE, DISK_UPPER, DISK_WORK, Device, IMAGE_FSTYPE, Prepared};
use fc_vm::machine::chain;

use super::error::CallError;
use super::files::Files;
use super::shim::{Phase, Running, Shim};

/// Attaches all that a container has; answers the mounts of its rootfs that are left for the agent, `None`
/// when the rootfs is in the guest already. What is attached is the caller's to [`detach`] when this fails.
///
/// # Errors
/// When a slot is missing, or the VMM or the guest refuses.
pub async fn attach(
    running: &Running,
    id: &str,
    files: &Files,
) -> Result<Option<Vec<Mount>>, CallError> {
    let container = |held| Container { running, id, held };
    let mounts = match &files.rootfs {
        Some(rootfs) => Some(container(Arc::clone(rootfs) as Held).rootfs(rootfs).await?),
        None => None,
    };
    let container = container(Arc::clone(&files.volumes) as Held);
    for drive in files.volumes.drives() {
        let kind = if drive.read_only {
            Kind::ReadOnly
        } else {
            Kind::Volume
        };
        container
            .attach(
                kind,
                &drive.host_path,
                &drive.destination,
                &drive.fstype,
                &drive.options,
            )
            .await?;
    }
    Ok(mounts)
}

/// Detaches whatever drives the container has. What fails is logged; its slots and files are kept from further use.
pub async fn detach(running: &Running, id: &str) {
    if let Err(error) = running.machine.drives().detach_owner(id).await {
        tracing::error!(task = id, "{}", chain(&error));
    }
}

/// Tries again to detach what could not be detached, before files are made for a new container: it may want an image
/// that is still locked, or have the id of a container whose files are still in use.
///
/// # Errors
/// When a container of that id still has a drive in the VM.
pub async fn reclaim(shim: &Shim, id: &str) -> Result<(), CallError> {
    // A VM that is not up yet has nothing to take back.
    let Phase::Running(running) = shim.phase() else {
        return Ok(());
    };
    let drives = running.machine.drives();
    let stuck = |state: &SlotState| matches!(state, SlotState::Quarantined(_));
    if !drives.slots().iter().any(|slot| stuck(&slot.state)) {
        return Ok(());
    }
    detach(&running, id).await;
    for slot in drives.slots() {
        if let Some(user) = slot.used_by.filter(|user| user.owner == id) {
            return Err(CallError::Drive {
                task: id.to_owned(),
                source: DriveError::InUse {
                    drive_id: slot.drive_id,
                    owner: user.owner,
                    destination: user.destination,
                },
            });
        }
    }
    Ok(())
}

/// A path in the container's directory in the guest.
pub fn guest_path(id: &str, below: &str) -> String {
    format!("{BUNDLE_ROOT}/{id}{below}")
}

struct Container<'a> {
    running: &'a Running,
    id: &'a str,
    /// What makes its files what they are, for as long as the VM uses them.
    held: Held,
}

impl Container<'_> {
    async fn attach(
        &self,
        kind: Kind,
        host_path: &Path,
        destination: &str,
        fstype: &str,
        options: &[String],
    ) -> Result<(), CallError> {
        let request = Attach {
            host_path: host_path.to_owned(),
            destination: destination.to_owned(),
            fstype: fstype.to_owned(),
            options: options.to_vec(),
            owner: self.id.to_owned(),
            held: Some(Arc::clone(&self.held)),
        };
        let attached = self.running.machine.drives().attach(kind, request).await;
        attached.map(drop).map_err(|source| CallError::Drive {
            task: self.id.to_owned(),
            source,
        })
    }

    async fn rootfs(&self, prepared: &Prepared) -> Result<Vec<Mount>, CallError> {
        let at = |name: &str| guest_path(self.id, name);
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
                self.attach(kind, source, &at("/rootfs"), fstype, options)
                    .await?;
                Ok(Vec::new())
            }
            Prepared::Layers { image, disk: None } => {
                let rootfs = at("/rootfs");
                self.attach(Kind::ReadOnly, image.path(), &rootfs, IMAGE_FSTYPE, &[])
                    .await?;
                Ok(Vec::new())
            }
            Prepared::Layers {
                image,
                disk: Some(disk),
            } => {
                if !self.running.machine.guest().has(feature::ROOTFS_MOUNTS) {
                    return Err(CallError::Unsupported(
                        "The agent in this root image only takes a block device as a container's rootfs: use a block snapshotter, or a root image of this version".to_owned(),
                    ));
                }
                let (lower, upper) = (at("/image"), at("/disk"));
                let image = self.attach(Kind::ReadOnly, image.path(), &lower, IMAGE_FSTYPE, &[]);
                let disk = self.attach(Kind::Writable, disk.path(), &upper, DISK_FSTYPE, &[]);
                // Both to their ends, so that a failure leaves nothing half done.
                let (image, disk) = tokio::join!(image, disk);
                image.and(disk)?;
                Ok(vec![overlay(&lower, &upper)])
            }
        }
    }
}

/// The container's rootfs of its two drives.
fn overlay(image: &str, disk: &str) -> Mount {
    Mount {
        type_: "overlay".to_owned(),
        source: "overlay".to_owned(),
        options: vec![
            format!("lowerdir={image}"),
            format!("upperdir={disk}/{DISK_UPPER}"),
            format!("workdir={disk}/{DISK_WORK}"),
        ],
        ..Mount::default()
    }
}
