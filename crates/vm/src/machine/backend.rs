//! The two ends that a drive slot needs: the VMM that swaps its file, the agent that mounts it.

use async_trait::async_trait;
use fc_client::Client;
use fc_client::api::DriveUpdate;
use fc_drives::{BackendError, DrivePatcher, GuestMounter};
use fc_proto::guest::{DriveMounterClient, MountDriveRequest, UnmountDriveRequest};
use fc_proto::ttrpc::context::Context;

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

/// Mounts through the agent.
pub(super) struct Mounter {
    pub(super) client: DriveMounterClient,
    pub(super) context: Context,
}

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
        self.client
            .mount_drive(self.context.clone(), &request)
            .await?;
        Ok(())
    }

    async fn unmount(&self, drive_id: &str) -> Result<(), BackendError> {
        let request = UnmountDriveRequest {
            DriveID: drive_id.to_owned(),
            ..UnmountDriveRequest::default()
        };
        self.client
            .unmount_drive(self.context.clone(), &request)
            .await?;
        Ok(())
    }
}
