//! What attaching a drive asks of the jail, of the VMM and of the guest.

use std::error::Error;
use std::path::Path;

use async_trait::async_trait;

/// Why a VMM or a guest refused; its text and sources end up in the client's error.
pub type BackendError = Box<dyn Error + Send + Sync>;

/// Lets the VMM see a file of the host under a fixed name. How depends on the jail that the VMM is in;
/// without one it is [`Links`](crate::Links).
#[async_trait]
pub trait Exposer: Send + Sync {
    /// Makes the file or block device at the absolute path `host_path` visible to the VMM as `name`, a plain
    /// file name; for reading only if `read_only`. Answers its path relative to the VMM's working
    /// directory, for [`DrivePatcher::patch`].
    ///
    /// Exposing what is exposed already succeeds; another file under the same name takes the first one's place.
    ///
    /// # Errors
    /// Whatever stands in the way. Something may have been made of it then; the caller withdraws it.
    async fn expose(
        &self,
        name: &str,
        host_path: &Path,
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
