//! No jail: the VMM sees the host's files, as root.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use fc_client::{Vmm, VmmCommand};
use fc_drives::{Exposer, Links};
use fc_host_file::HostFile;

use crate::drive_file::DriveFile;
use crate::error::{JailError, StartError};
use crate::jailer::{Jailer, ROOT_DRIVE, Role, Start};
use crate::undo::UndoError;

/// File name of the API socket (the original's).
const API_SOCKET: &str = "firecracker.sock";

/// A VMM that runs in the VM's directory, killed by the kernel when this process ends.
#[derive(Debug)]
pub struct Unjailed {
    dir: PathBuf,
    vmm: PathBuf,
    vmm_id: String,
}

impl Unjailed {
    /// `vmm` is the program, `vmm_id` its name for the VM, `dir` the VM's directory, which exists.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, vmm: impl Into<PathBuf>, vmm_id: &str) -> Self {
        Self {
            dir: dir.into(),
            vmm: vmm.into(),
            vmm_id: vmm_id.to_owned(),
        }
    }
}

#[async_trait]
impl Jailer for Unjailed {
    fn root(&self) -> &Path {
        &self.dir
    }

    fn api_socket(&self) -> &'static str {
        API_SOCKET
    }

    fn cgroup_path(&self) -> Option<&str> {
        None
    }

    async fn show(&self, _role: Role, host_path: &Path) -> Result<String, JailError> {
        Ok(host_path.display().to_string())
    }

    fn show_root(&self, file: &HostFile, _read_only: bool) -> Result<String, JailError> {
        let link = self.dir.join(ROOT_DRIVE);
        symlink(file.link(), &link).map_err(|source| JailError::File { path: link, source })?;
        Ok(ROOT_DRIVE.to_owned())
    }

    async fn show_fifo(&self, name: &str, host_path: &Path) -> Result<String, JailError> {
        // One of the VM's own has a name that is the same for every VM.
        if host_path == self.dir.join(name) {
            Ok(name.to_owned())
        } else {
            Ok(host_path.display().to_string())
        }
    }

    fn share(&self, _name: &str) -> Result<(), JailError> {
        Ok(())
    }

    fn check_drive(&self, _file: &HostFile, _read_only: bool) -> Result<(), JailError> {
        // Root may use every file.
        Ok(())
    }

    fn drive_file(&self, file: HostFile, _read_only: bool) -> Result<DriveFile, JailError> {
        Ok(DriveFile::itself(file))
    }

    fn exposer(&self) -> Arc<dyn Exposer> {
        Arc::new(Links::new(&self.dir))
    }

    async fn start(&self, start: Start) -> Result<Vmm, StartError> {
        let mut command = VmmCommand::new(&self.vmm, &self.vmm_id, &self.dir);
        command.api_socket = API_SOCKET.to_owned();
        command.log_output = start.log_output;
        command.ready_bound = start.ready_bound;
        command.output = start.output;
        command.log = start.log;
        Ok(Vmm::launch(command).await?)
    }

    fn seal(&self, _name: &str) -> Result<(), JailError> {
        Ok(())
    }

    async fn close(&self) -> Vec<UndoError> {
        // Everything lies in the VM's directory, and the process goes with its `Vmm`.
        Vec::new()
    }
}
