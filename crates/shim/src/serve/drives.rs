//! A container's drives: its files attached to the VM's slots and mounted in the guest.

use fc_drives::{Attach, DriveError, Drives, Kind, SlotState};
use fc_errors::chain;
use fc_host_file::HostFile;
use fc_proto::guest::{BUNDLE_ROOT, feature};
use fc_proto::task::api::Mount;
use fc_rootfs::{DISK_FSTYPE, DISK_UPPER, DISK_WORK, IMAGE_FSTYPE, Prepared};

use super::error::{CallError, Unsupported};
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
    let drives = running.machine.drives();
    let mounts = match &files.rootfs {
        Some(rootfs) => {
            let mounts_rootfs = running.machine.guest().has(feature::ROOTFS_MOUNTS);
            let container = Container { drives, id };
            Some(container.rootfs(rootfs, mounts_rootfs).await?)
        }
        None => None,
    };
    attach_volumes(drives, id, &files.volumes).await?;
    Ok(mounts)
}

async fn attach_volumes(
    drives: &Drives,
    id: &str,
    volumes: &fc_volume::Prepared,
) -> Result<(), CallError> {
    let container = Container { drives, id };
    for drive in volumes.drives() {
        let kind = if drive.read_only {
            Kind::ReadOnly
        } else {
            Kind::Volume
        };
        container
            .attach(
                kind,
                &drive.file,
                &drive.destination,
                &drive.fstype,
                &drive.options,
            )
            .await?;
    }
    Ok(())
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
                source: Box::new(DriveError::InUse {
                    drive_id: slot.drive_id,
                    owner: user.owner,
                    destination: user.destination,
                }),
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
    drives: &'a Drives,
    id: &'a str,
}

impl Container<'_> {
    async fn attach(
        &self,
        kind: Kind,
        file: &HostFile,
        destination: &str,
        fstype: &str,
        options: &[String],
    ) -> Result<(), CallError> {
        let request = Attach {
            file: file.clone(),
            destination: destination.to_owned(),
            fstype: fstype.to_owned(),
            options: options.to_vec(),
            owner: self.id.to_owned(),
        };
        let attached = self.drives.attach(kind, request).await;
        attached.map(drop).map_err(|source| CallError::Drive {
            task: self.id.to_owned(),
            source: Box::new(source),
        })
    }

    /// `mounts_rootfs`: whether the agent can make a rootfs of several drives.
    async fn rootfs(
        &self,
        prepared: &Prepared,
        mounts_rootfs: bool,
    ) -> Result<Vec<Mount>, CallError> {
        let at = |name: &str| guest_path(self.id, name);
        match prepared {
            Prepared::Device { device, file } => {
                let kind = if device.read_only {
                    Kind::ReadOnly
                } else {
                    Kind::Writable
                };
                let rootfs = at("/rootfs");
                self.attach(kind, file, &rootfs, &device.fstype, &device.options)
                    .await?;
                Ok(Vec::new())
            }
            Prepared::Layers { image, disk: None } => {
                let rootfs = at("/rootfs");
                self.attach(Kind::ReadOnly, image.file(), &rootfs, IMAGE_FSTYPE, &[])
                    .await?;
                Ok(Vec::new())
            }
            Prepared::Layers {
                image,
                disk: Some(disk),
            } => {
                if !mounts_rootfs {
                    return Err(Unsupported::BlockDevicesOnly.into());
                }
                let (lower, upper) = (at("/image"), at("/disk"));
                let image = self.attach(Kind::ReadOnly, image.file(), &lower, IMAGE_FSTYPE, &[]);
                let disk = self.attach(Kind::Writable, disk.file(), &upper, DISK_FSTYPE, &[]);
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use fc_drives::{
        BackendError, BootOnly, DrivePatcher, GuestMounter, Layout, Links, StubDrives,
    };
    use fc_volume::{CopySettings, VolumeError, VolumeFiles, Volumes};

    use super::*;

    /// A VM whose guest does not unmount while it is busy.
    #[derive(Default)]
    struct Vm {
        busy: AtomicBool,
    }

    #[async_trait]
    impl DrivePatcher for Vm {
        async fn patch(&self, _: &str, _: &str) -> Result<(), BackendError> {
            Ok(())
        }
    }

    #[async_trait]
    impl GuestMounter for Vm {
        async fn mount(&self, _: &str, _: &str, _: &str, _: &[String]) -> Result<(), BackendError> {
            Ok(())
        }

        async fn unmount(&self, _: &str) -> Result<(), BackendError> {
            match self.busy.load(Ordering::Relaxed) {
                true => Err("the guest uses it".into()),
                false => Ok(()),
            }
        }
    }

    async fn prepare(dir: &Path) -> Result<fc_volume::Prepared, VolumeError> {
        let image = dir.join("data.ext4");
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "mounts": [{"destination": "/d", "type": "ext4", "source": image, "options": ["rw"]}],
        });
        let request = fc_volume::Request {
            guest_dir: guest_path("c", ""),
            guest_paths: Vec::new(),
            files: VolumeFiles {
                copies: dir.join("c.copies"),
                writable_copies: dir.join("c.wcopies"),
                writable_size: 1 << 20,
            },
        };
        let volumes = Volumes::new(CopySettings::new(1 << 20));
        volumes.prepare(spec.to_string().as_bytes(), &request).await
    }

    #[tokio::test]
    async fn a_writable_image_is_nobody_else_s_while_the_guest_may_have_it_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("data.ext4");
        let mkfs = Command::new("mkfs.ext4")
            .arg("-q")
            .arg(image)
            .arg("4M")
            .output();
        match mkfs {
            Ok(made) => assert!(made.status.success(), "{made:?}"),
            Err(error) => {
                println!("SKIPPED: mkfs.ext4 cannot be run (e2fsprogs): {error}");
                return;
            }
        }
        let vm = Arc::new(Vm::default());
        let layout = Layout {
            volumes: 1,
            ..Layout::default()
        };
        let stubs = StubDrives::create(dir.path(), &layout).unwrap();
        let links = Arc::new(Links::new(dir.path()));
        let backends = (Arc::clone(&vm) as _, Arc::clone(&vm) as _);
        let drives = stubs.connect(links, backends.0, backends.1, Arc::new(BootOnly));
        let volumes = prepare(dir.path()).await.unwrap();
        attach_volumes(&drives, "c", &volumes).await.unwrap();

        vm.busy.store(true, Ordering::Relaxed);
        drives.detach_owner("c").await.unwrap_err();
        drop(volumes);
        let refused = prepare(dir.path()).await.unwrap_err();
        assert!(chain(&refused).contains("is in use: another VM or container"));

        vm.busy.store(false, Ordering::Relaxed);
        drives.detach_owner("c").await.unwrap();
        prepare(dir.path()).await.unwrap();
    }
}
