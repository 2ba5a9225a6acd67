//! The two ends that a drive slot needs: the VMM that swaps its file, the agent that mounts it.

use async_trait::async_trait;
use fc_client::Client;
use fc_client::api::DriveUpdate;
use fc_drives::{BackendError, DrivePatcher, GuestMounter};
use fc_proto::guest::{MountDriveRequest, UnmountDriveRequest};
use fc_proto::ttrpc::Error as RpcError;

use super::Guest;
use super::guest::heard;

/// Swaps files through the VMM's API.
pub(super) struct Patcher(pub(super) Client);

#[async_trait]
impl DrivePatcher for Patcher {
    async fn patch(&self, drive_id: &str, path_on_host: &str) -> Result<(), BackendError> {
        Ok(self
            .0
            .patch_drive(&DriveUpdate::path(drive_id, path_on_host))
            .await?)
    }
}

/// Mounts through the agent, over the connection of the moment.
pub(super) struct Mounter(pub(super) Guest);

#[async_trait]
impl GuestMounter for Mounter {
    async fn mount(
        &self,
        drive_id: &str,
        destination: &str,
        fstype: &str,
        options: &[String],
    ) -> Result<(), BackendError> {
        let request = MountDriveRequest {
            DriveID: drive_id.to_owned(),
            DestinationPath: destination.to_owned(),
            FilesytemType: fstype.to_owned(),
            Options: options.to_vec(),
            ..MountDriveRequest::default()
        };
        let guest = &self.0;
        guest.connected().await;
        let mounter = guest.drive_mounter();
        let mounted = mounter.mount_drive(guest.context(), &request).await;
        mounted.map(drop).map_err(said)
    }

    async fn unmount(&self, drive_id: &str) -> Result<(), BackendError> {
        let request = UnmountDriveRequest {
            DriveID: drive_id.to_owned(),
            ..UnmountDriveRequest::default()
        };
        let guest = &self.0;
        guest.connected().await;
        let mounter = guest.drive_mounter();
        let unmounted = mounter.unmount_drive(guest.context(), &request).await;
        unmounted.map(drop).map_err(said)
    }
}

/// The agent's own words; ttrpc would show the whole message that they came in.
fn said(error: RpcError) -> BackendError {
    match heard(error) {
        RpcError::RpcStatus(status) => status.message.into(),
        lost => lost.into(),
    }
}
