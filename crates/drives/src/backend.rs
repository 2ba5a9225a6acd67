//! What attaching a drive asks of the jail, of the VMM and of the guest.

use std::error::Error;

use async_trait::async_trait;
use fc_host_file::HostFile;

use crate::slots::Kind;

/// Why a VMM or a guest refused; its text and sources end up in the client's error.
pub type BackendError = Box<dyn Error + Send + Sync>;

/// Lets the VMM see a file of the host under a fixed name. How depends on the jail that the VMM is in;
/// without one it is [`Links`](crate::Links).
#[async_trait]
pub trait Exposer: Send + Sync {
    /// Makes `file`, by its descriptor, visible to the VMM as `name`, a plain file name; for reading only if
    /// `read_only`. Answers its path relative to the VMM's working directory, for [`DrivePatcher::patch`].
    /// The caller keeps `file` until it has been withdrawn.
    ///
    /// Exposing what is exposed already succeeds; another file under the same name takes the first one's place.
    ///
    /// # Errors
    /// Whatever stands in the way. Something may have been made of it then; the caller withdraws it.
    async fn expose(
        &self,
        name: &str,
        file: &HostFile,
        read_only: bool,
    ) -> Result<String, BackendError>;

    /// Takes away what `expose` made of `name`; the file itself stays. Withdrawing what is not exposed succeeds.
    ///
    /// # Errors
    /// Whatever stands in the way; withdrawing again goes on from there.
    async fn withdraw(&self, name: &str) -> Result<(), BackendError>;
}

/// Changes the file behind a drive of a running VM (Firecracker: `PATCH /drives/<id>`).
#[async_trait]
pub trait DrivePatcher: Send + Sync {
    /// Puts `path_on_host`, relative to the VMM's working directory, behind the drive.
    ///
    /// # Errors
    /// Whatever the VMM says. The drive may have either file behind it then; the caller patches it back.
    async fn patch(&self, drive_id: &str, path_on_host: &str) -> Result<(), BackendError>;
}

/// Mounts drives in the guest (service `DriveMounter`).
#[async_trait]
pub trait GuestMounter: Send + Sync {
    /// Mounts the drive's new content.
    ///
    /// # Errors
    /// Whatever the guest says. The drive may be mounted or not then; the caller unmounts it.
    async fn mount(
        &self,
        drive_id: &str,
        destination: &str,
        fstype: &str,
        options: &[String],
    ) -> Result<(), BackendError>;

    /// Unmounts the drive wherever it is mounted and flushes what was written. Unmounting
    /// a drive that is not mounted succeeds.
    ///
    /// # Errors
    /// Whatever the guest says; the drive's file is left where it is then.
    async fn unmount(&self, drive_id: &str) -> Result<(), BackendError>;
}

/// Adds drives to a running VM, for when no slot is free (hot-plugging).
///
/// A drive that was added begins as a slot like those that the VM booted with: with a stub behind it, free. It stays
/// with the VM. [`BootOnly`] is what the VMMs of today offer.
#[async_trait]
pub trait HotPlug: Send + Sync {
    /// Adds a drive of that kind, read-only for the VMM if the kind is.
    ///
    /// # Errors
    /// When the VMM cannot; it has no drive more than before then.
    async fn add(&self, kind: Kind) -> Result<AddedDrive, BackendError>;
}

/// A drive that [`HotPlug::add`] gave to a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedDrive {
    /// The VMM's name for it, which its stub carries for the guest.
    pub drive_id: String,
    /// The stub file behind it, in the VMM's working directory.
    pub file_name: String,
}

/// A VMM whose drives are fixed when the VM boots. All are, as they are started here: Firecracker 1.16 answers
/// `PUT /drives` of a running VM with "PCI is not enabled", older ones and firecracker-tcg that it cannot be done
/// after the start. So it is not even tried.
#[derive(Debug, Clone, Copy)]
pub struct BootOnly;

/// Why [`BootOnly`] adds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The VMM cannot add a drive to a running VM")]
pub struct FixedDrives;

#[async_trait]
impl HotPlug for BootOnly {
    async fn add(&self, _kind: Kind) -> Result<AddedDrive, BackendError> {
        Err(FixedDrives.into())
    }
}
