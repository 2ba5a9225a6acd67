//! What a VM needs of a jail, or of its absence.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fc_client::{FifoTail, Tail, Vmm};
use fc_drives::Exposer;
use fc_host_file::HostFile;

use crate::drive_file::DriveFile;
use crate::error::{JailError, StartError};
use crate::undo::UndoError;

/// The root drive's name in the VMM's working directory, jailed or not.
pub(crate) const ROOT_DRIVE: &str = "root-drive";

/// A file that a VM boots from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The guest's kernel.
    Kernel,
    /// The guest's initrd.
    Initrd,
}

/// How to start the VMM; the defaults are those of [`fc_client::VmmCommand`].
#[derive(Debug)]
pub struct Start {
    /// Whether every line of the process' output is logged. Default false.
    pub log_output: bool,
    /// How long the process may take until its API answers. Default 30 s.
    pub ready_bound: Duration,
    /// Where the last lines of its output go. Default a tail of its own.
    pub output: Tail,
    /// The VMM's log, to be part of what is known of its end. Default none.
    pub log: Option<FifoTail>,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            log_output: false,
            ready_bound: Duration::from_secs(30),
            output: Tail::default(),
            log: None,
        }
    }
}

/// Where a VMM sees its files, how it is started and how it is cleaned up.
///
/// In order: what is shown and shared; [`Jailer::start`]; [`Jailer::seal`]; the exposer while the VMM runs; when it
/// has ended, or a step failed, [`Jailer::close`].
#[async_trait]
pub trait Jailer: Send + Sync {
    /// The VMM's root and working directory, as the host sees it. What the host makes for the VMM (stub drives,
    /// listening sockets) it makes here, and then [`Jailer::share`]s it.
    fn root(&self) -> &Path;

    /// File name of the VMM's API socket in [`Jailer::root`].
    fn api_socket(&self) -> &'static str;

    /// The VMM's control group, the same path in each hierarchy; `None` without a jail.
    fn cgroup_path(&self) -> Option<&str>;

    /// Shows a file of the host to the VMM, before it starts. Answers the VMM's path for it.
    ///
    /// # Errors
    /// When it cannot be shown.
    async fn show(&self, role: Role, host_path: &Path) -> Result<String, JailError>;

    /// Shows the VMM its guest's root device, before it starts; for reading only if `read_only`. Answers the VMM's
    /// path for it. The caller keeps `file` for as long as the VMM runs.
    ///
    /// # Errors
    /// When it cannot be shown.
    fn show_root(&self, file: &HostFile, read_only: bool) -> Result<String, JailError>;

    /// Shows a FIFO of the host, on whatever file system, to the VMM as `name`, before it starts. Answers the
    /// VMM's path for it.
    ///
    /// # Errors
    /// When it cannot be shown.
    async fn show_fifo(&self, name: &str, host_path: &Path) -> Result<String, JailError>;

    /// Lets the VMM use the file or socket `name` that the host made in [`Jailer::root`].
    ///
    /// # Errors
    /// When it is not there or of another kind.
    fn share(&self, name: &str) -> Result<(), JailError>;

    /// Refuses a file that the VMM could not use as a root drive or a drive mount, before there is a VM: one whose mode
    /// forbids even its owner to, unless the VMM gets a copy.
    ///
    /// # Errors
    /// Why it could not be used.
    fn check_drive(&self, file: &HostFile, read_only: bool) -> Result<(), JailError>;

    /// What to show for a root drive or a drive mount of `file`: a private copy, which needs `file` no more when it is
    /// complete and goes with its last user, or the file itself, as the VM was asked for. The VMM may see an
    /// incomplete one, but is to be told of it only when it is complete. One that is dropped before is given up.
    ///
    /// # Errors
    /// When there can be no copy.
    fn drive_file(&self, file: HostFile, read_only: bool) -> Result<DriveFile, JailError>;

    /// Shows files to the VMM while it runs.
    fn exposer(&self) -> Arc<dyn Exposer>;

    /// Starts the VMM and waits until its API answers. It is a child of this process, or adopted by it, and its
    /// end is known at once. In a jail it can be started once.
    ///
    /// # Errors
    /// Why it does not answer; [`Jailer::close`] is still to be called.
    async fn start(&self, start: Start) -> Result<Vmm, StartError>;

    /// To be called when the guest has started: from then on the VMM is under suspicion. Its socket `name` is taken
    /// out of its hands, so that it cannot put something else there that the host would connect to. And it can no
    /// longer make its files longer than the longest drive that it may write.
    ///
    /// # Errors
    /// When there is something else than a socket, or a process cannot be limited.
    fn seal(&self, name: &str) -> Result<(), JailError>;

    /// Undoes everything, and kills what is left of the VMM. Answers all that failed. May be called again.
    async fn close(&self) -> Vec<UndoError>;
}
