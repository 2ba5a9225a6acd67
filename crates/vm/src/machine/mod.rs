//! A running VM: its VMM, its guest's agent, its drives, and how it ends.

mod backend;
mod boot;
mod boot_failure;
mod configure;
mod diagnosis;
mod error;
mod fifos;
mod guest;
mod last_words;
mod ports;
mod preflight;
mod progress;
mod spec;
mod stop;
mod vmm_id;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fc_client::{ApiError, Client, Vmm, VmmEnd};
use fc_drives::Drives;
use fc_errors::chain;
use fc_host_file::HostFile;
use fc_jailer::Jailer;
use fifos::Fifos;
use tokio::task::JoinHandle;

pub use boot::boot;
pub use diagnosis::{Cause, diagnose};
pub use error::{BootError, Class};
pub use guest::{Connection, Guest, GuestError, NAMESPACE_KEY};
pub use last_words::{Console, LastLog};
pub use ports::HostPorts;
pub use preflight::{PreflightError, What};
pub use progress::{Progress, Span, VmmInfo, WaitsFor};
pub use spec::{
    CpuTemplate, DEFAULT_TIMEOUT, DriveMount, Interface, Ip, MAX_SLOTS, MAX_VCPUS, RootDrive,
    SpecError, VmSpec, host_is_intel,
};
pub use stop::StopError;

use crate::dir::{self, VmDir};

/// A VM that booted and whose agent answers. Dropping it kills the VMM.
pub struct Machine {
    dir: VmDir,
    spec: VmSpec,
    vmm: Vmm,
    guest: Guest,
    drives: Drives,
    /// The root drive's file; `None` when the VM has ended.
    root: Mutex<Option<HostFile>>,
    fifos: Fifos,
    jail: Arc<dyn Jailer>,
    ports: HostPorts,
    keeper: JoinHandle<()>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Machine {
    /// What the VM was made from.
    #[must_use]
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Process id of the VMM on the host.
    #[must_use]
    pub fn vmm_pid(&self) -> u32 {
        self.vmm.pid()
    }

    /// The VMM's API.
    #[must_use]
    pub fn vmm(&self) -> &Client {
        self.vmm.client()
    }

    /// The agent.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The slots for containers' drives.
    #[must_use]
    pub fn drives(&self) -> &Drives {
        &self.drives
    }

    /// The VM's directory.
    #[must_use]
    pub fn dir(&self) -> &VmDir {
        &self.dir
    }

    /// Path of the VMM's vsock socket.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.ports.vsock().to_owned()
    }

    /// The host's ports that the guest can connect to.
    #[must_use]
    pub fn ports(&self) -> &HostPorts {
        &self.ports
    }

    /// Whether the VMM is in a jail.
    #[must_use]
    pub fn is_jailed(&self) -> bool {
        self.spec.jail.is_some()
    }

    /// The VMM's control group, the same path in each hierarchy; `None` without a jail.
    #[must_use]
    pub fn cgroup_path(&self) -> Option<&str> {
        self.jail.cgroup_path()
    }

    /// Lets go of the files of a VM that has ended, and removes its jail, without blocking. Answers all that
    /// failed; it stays on record, for [`crate::state::undo`].
    pub async fn close(&self) -> Vec<fc_jailer::UndoError> {
        self.drives.vm_ended();
        let root = self
            .root
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(root);
        self.jail.close().await
    }

    /// Path of the VMM's API socket.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.jail.root().join(self.jail.api_socket())
    }

    /// Path of the FIFO with the VMM's log.
    #[must_use]
    pub fn log_fifo(&self) -> &Path {
        &self.fifos.log
    }

    /// Path of the FIFO with the VMM's metrics.
    #[must_use]
    pub fn metrics_fifo(&self) -> &Path {
        &self.fifos.metrics
    }

    /// Lets a paused VM go on, with the host's time: how much of the pause a guest notices by itself
    /// depends on its clock source.
    ///
    /// # Errors
    /// The VMM's. A clock that cannot be set is only logged.
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.vmm.client().resume().await?;
        if let Err(error) = self.guest.set_clock().await {
            tracing::warn!(error = %chain(&error), "Cannot set the guest's clock after the pause");
        }
        Ok(())
    }

    /// Resolves when the VMM has ended, at once if it has already.
    pub fn exited(&self) -> impl Future<Output = VmmEnd> + Send + 'static {
        self.vmm.exited()
    }

    /// How the VMM ended, if it did.
    #[must_use]
    pub fn end(&self) -> Option<VmmEnd> {
        self.vmm.end()
    }

    /// The guest's last console lines.
    #[must_use]
    pub fn console(&self) -> Console {
        Console::new(self.vmm.console())
    }
}
