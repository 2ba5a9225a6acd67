//! A VM's directory: its path and the names of what is inside.

use std::path::{Path, PathBuf};

use crate::ident::{self, InvalidIdentifier};

/// Lock file; whoever holds its flock is the VM's shim (or is about to start it).
pub const LOCK: &str = "lock";
/// The VMM's API socket.
pub const API_SOCKET: &str = "firecracker.sock";
/// The VMM's vsock socket; guest ports on the host are this and `_<port>`.
pub const VSOCK: &str = "firecracker.vsock";
/// FIFO of the VMM's log.
pub const LOG_FIFO: &str = "fc-logs.fifo";
/// FIFO of the VMM's metrics.
pub const METRICS_FIFO: &str = "fc-metrics.fifo";
/// FIFO of the shim's log, for shims whose starter wants one.
pub const SHIM_LOG: &str = "shim-log.fifo";
/// Record of what must be undone, see [`crate::state`].
pub const STATE: &str = "state.json";

/// The directory `<shim_base_dir>/<namespace>#<vm id>`: working directory of the
/// VM's shim and VMM, so that all names inside can be used relatively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDir {
    path: PathBuf,
    namespace: String,
    vm_id: String,
}

impl VmDir {
    /// The directory of a VM; nothing is created.
    ///
    /// # Errors
    /// When the namespace or the VM id is no identifier.
    pub fn new(base: &Path, namespace: &str, vm_id: &str) -> Result<Self, InvalidIdentifier> {
        ident::validate(namespace)?;
        ident::validate(vm_id)?;
        // The directory is a process's working directory later, so links in the base are
        // resolved now; a base that does not exist yet has none.
        let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
        Ok(Self {
            path: base.join(format!("{namespace}#{vm_id}")),
            namespace: namespace.to_owned(),
            vm_id: vm_id.to_owned(),
        })
    }

    /// Absolute path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// containerd namespace of the VM.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Id of the VM.
    #[must_use]
    pub fn vm_id(&self) -> &str {
        &self.vm_id
    }

    /// Path of something inside.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let dir = VmDir::new(Path::new("/nonexistent/base"), "default", "vm-1").unwrap();
        assert_eq!(dir.path(), Path::new("/nonexistent/base/default#vm-1"));
        assert_eq!(
            dir.join(LOCK),
            Path::new("/nonexistent/base/default#vm-1/lock")
        );
        assert!(VmDir::new(Path::new("/b"), "de/fault", "vm").is_err());
        assert!(VmDir::new(Path::new("/b"), "default", "..").is_err());
    }
}
