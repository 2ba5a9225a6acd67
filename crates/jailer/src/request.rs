//! What a jail is asked to be.

use std::path::{Path, PathBuf};

use crate::{CpusetList, User};

/// What becomes of the root drive and the drive mounts; block devices are never copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExposePolicy {
    /// The VMM gets copies, which are the VM's own and go with it.
    #[default]
    Copy,
    /// The VMM gets the files themselves.
    Bind,
}

impl ExposePolicy {
    /// Whether the VMM gets a copy of a drive's file.
    #[must_use]
    pub fn copies(self, block_device: bool) -> bool {
        self == Self::Copy && !block_device
    }
}

/// A jail that somebody asks for (the API's `JailerConfig`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailRequest {
    /// Who the VMM runs as.
    pub user: User,
    /// The VMM's network namespace; `None` for the template's, else a new one without any network.
    pub net_ns: Option<PathBuf>,
    /// Processors; empty for all.
    pub cpus: CpusetList,
    /// Memory nodes; empty for all.
    pub mems: CpusetList,
    /// The cgroup that the VM's is made in; empty for `/firecracker-containerd`.
    pub cgroup_path: String,
    /// What becomes of drives.
    pub policy: ExposePolicy,
}

/// Everything that a jail is made from.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The VM's directory: absolute, exists, locked by the caller.
    pub dir: &'a Path,
    /// containerd namespace of the VM.
    pub namespace: &'a str,
    /// Id of the VM, which names its container and its cgroup.
    pub vm_id: &'a str,
    /// The VMM's program.
    pub vmm: &'a Path,
    /// The VMM's name for the VM.
    pub vmm_id: &'a str,
    /// The OCI runtime: a path, or a name that is looked for on `PATH`.
    pub runc: &'a Path,
    /// The template of the container's configuration.
    pub template: &'a Path,
    /// The request.
    pub request: JailRequest,
}
