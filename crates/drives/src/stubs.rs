//! The stub files that a VM boots with.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fc_stub_drive::Kind as StubKind;

use crate::backend::{DrivePatcher, Exposer, GuestMounter, HotPlug};
use crate::drives::Drives;
use crate::slots::{Kind, Role, Slot, Slots};

/// How many slots of which kind a VM gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Writable slots, one per container (ContainerCount).
    pub containers: u32,
    /// One slot per drive mount of the VM.
    pub drive_mounts: Vec<DriveMountSlot>,
    /// Read-only slots for shared images.
    pub shared: u32,
    /// Writable slots for volumes.
    pub volumes: u32,
}

/// What a slot must know of its drive mount. Rate limiter and cache type, which cannot be changed after boot
/// either, are the caller's to add: [`BootDrive::drive_mount`] says where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveMountSlot {
    /// Whether the guest shall not write to it.
    pub read_only: bool,
}

/// A drive to configure before boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootDrive {
    /// The VMM's name for it.
    pub drive_id: String,
    /// The stub file, relative to the VMM's working directory.
    pub file_name: String,
    /// Whether the VMM shall refuse to write to it; cannot change later.
    pub read_only: bool,
    /// Index into [`Layout::drive_mounts`] if that is what the drive is for.
    pub drive_mount: Option<usize>,
}

/// The stub files of a VM that has not booted yet. The files belong to the
/// VMM's working directory and go with it.
#[derive(Debug)]
pub struct StubDrives {
    boot: Vec<BootDrive>,
    slots: Slots,
}

impl StubDrives {
    /// Writes the stub files into `dir`, the VMM's working directory.
    ///
    /// # Errors
    /// When a file exists already or cannot be written; those written before are removed.
    pub fn create(dir: &Path, layout: &Layout) -> Result<StubDrives, CreateError> {
        let mut stubs = StubDrives {
            boot: Vec::new(),
            slots: Slots::default(),
        };
        match stubs.write_all(dir, layout) {
            Ok(()) => Ok(stubs),
            Err(source) => {
                for drive in &stubs.boot {
                    let path = dir.join(&drive.file_name);
                    if let Err(error) = fs::remove_file(&path) {
                        tracing::warn!(stub = %path.display(), %error, "a stub drive stays");
                    }
                }
                Err(source)
            }
        }
    }

    fn write_all(&mut self, dir: &Path, layout: &Layout) -> Result<(), CreateError> {
        // The order is visible to the guest; ours come last so that the original's keep their places.
        self.write_some(dir, StubKind::Container, layout.containers, Kind::Writable)?;
        for (index, mount) in layout.drive_mounts.iter().enumerate() {
            let name = StubKind::DriveMount.stub_name(index);
            self.write(dir, name, mount.read_only, Role::DriveMount(index))?;
        }
        self.write_some(dir, StubKind::Image, layout.shared, Kind::ReadOnly)?;
        self.write_some(dir, StubKind::Volume, layout.volumes, Kind::Volume)
    }

    fn write_some(
        &mut self,
        dir: &Path,
        stub: StubKind,
        count: u32,
        kind: Kind,
    ) -> Result<(), CreateError> {
        for index in 0..count as usize {
            let name = stub.stub_name(index);
            self.write(dir, name, kind.is_read_only(), Role::Any(kind))?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        dir: &Path,
        file_name: String,
        read_only: bool,
        role: Role,
    ) -> Result<(), CreateError> {
        let drive_id = fc_stub_drive::create(dir, &file_name).map_err(|source| CreateError {
            file_name: file_name.clone(),
            source,
        })?;
        self.slots
            .add(Slot::new(&drive_id, &file_name, read_only, role));
        self.boot.push(BootDrive {
            drive_id,
            file_name,
            read_only,
            drive_mount: match role {
                Role::DriveMount(index) => Some(index),
                Role::Any(_) => None,
            },
        });
        Ok(())
    }

    /// The drives to configure, in order, after the root drive.
    pub fn boot_drives(&self) -> &[BootDrive] {
        &self.boot
    }

    /// Goes over to the running VM. `hot_plug` is asked for a drive when no slot of a kind is free.
    pub fn connect(
        self,
        exposer: Arc<dyn Exposer>,
        patcher: Arc<dyn DrivePatcher>,
        mounter: Arc<dyn GuestMounter>,
        hot_plug: Arc<dyn HotPlug>,
    ) -> Drives {
        Drives::new(self.slots, exposer, patcher, mounter, hot_plug)
    }
}

/// A stub file that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("The stub drive {file_name} cannot be made")]
pub struct CreateError {
    /// Its name in the VMM's working directory.
    pub file_name: String,
    /// Why.
    pub source: fc_stub_drive::CreateError,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout {
            containers: 2,
            drive_mounts: vec![DriveMountSlot { read_only: true }],
            shared: 1,
            volumes: 1,
        }
    }

    #[test]
    fn order_names_and_ids_are_the_original_s_and_ours_follow() {
        let dir = tempfile::tempdir().unwrap();
        let stubs = StubDrives::create(dir.path(), &layout()).unwrap();
        let seen: Vec<_> = stubs
            .boot_drives()
            .iter()
            .map(|drive| (drive.file_name.as_str(), drive.read_only, drive.drive_mount))
            .collect();
        assert_eq!(
            seen,
            [
                ("ctrstub0", false, None),
                ("ctrstub1", false, None),
                ("drivemntstub0", true, Some(0)),
                ("imgstub0", true, None),
                ("volstub0", false, None),
            ]
        );
        assert_eq!(stubs.boot_drives()[0].drive_id, "MN2HE43UOVRDA");
        let first = fs::read(dir.path().join("ctrstub0")).unwrap();
        assert_eq!(fc_stub_drive::parse(&first), Some("MN2HE43UOVRDA"));
    }

    #[test]
    fn a_failure_leaves_only_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("imgstub0"), "mine").unwrap();
        let error = StubDrives::create(dir.path(), &layout()).unwrap_err();
        assert_eq!(error.file_name, "imgstub0");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
    }
}
