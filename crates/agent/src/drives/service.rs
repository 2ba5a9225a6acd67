//! The `DriveMounter` service.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use fc_proto::guest::{DriveMounter, MountDriveRequest, UnmountDriveRequest};
use fc_proto::task::api::Empty;
use ttrpc::Code;
use ttrpc::asynchronous::TtrpcContext;

use super::{DriveError, Drives};
use crate::debug;
use crate::rpc::{detached, status};

/// Serves [`Drives`].
#[derive(Debug)]
pub struct DriveService(Arc<Drives>);

impl DriveService {
    /// A service for `drives`.
    #[must_use]
    pub fn new(drives: Arc<Drives>) -> Self {
        Self(drives)
    }
}

#[async_trait]
impl DriveMounter for DriveService {
    async fn mount_drive(
        &self,
        _: &TtrpcContext,
        request: MountDriveRequest,
    ) -> ttrpc::Result<Empty> {
        debug!("MountDrive {request}");
        let drives = Arc::clone(&self.0);
        detached(async move {
            let destination = PathBuf::from(&request.DestinationPath);
            drives
                .mount(
                    &request.DriveID,
                    &destination,
                    &request.FilesytemType,
                    &request.Options,
                )
                .await
        })
        .await?;
        Ok(Empty::new())
    }

    async fn unmount_drive(
        &self,
        _: &TtrpcContext,
        request: UnmountDriveRequest,
    ) -> ttrpc::Result<Empty> {
        debug!("UnmountDrive {request}");
        let drives = Arc::clone(&self.0);
        detached(async move { drives.unmount(&request.DriveID).await }).await?;
        Ok(Empty::new())
    }
}

impl From<DriveError> for ttrpc::Error {
    fn from(error: DriveError) -> Self {
        let code = match &error {
            DriveError::Unknown { .. } => Code::NOT_FOUND,
            DriveError::Destination { .. } => Code::INVALID_ARGUMENT,
            DriveError::NotSwapped(_) => Code::DEADLINE_EXCEEDED,
            DriveError::Busy { .. } => Code::FAILED_PRECONDITION,
            DriveError::ReadOnlyRoot(_)
            | DriveError::Mount(crate::mount::MountError::Type { .. }) => Code::FAILED_PRECONDITION,
            _ => Code::UNKNOWN,
        };
        status(code, &error)
    }
}
