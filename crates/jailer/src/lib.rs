//! Where a VMM sees its files, how it is started, how it is stopped and cleaned up: without a jail
//! ([`Unjailed`]), or in a container made by an OCI runtime ([`Runc`]); both behind [`Jailer`].
//!
//! Nothing here knows what a VM is for, or which file is which drive. What a jail promises is in
//! `docs/threat-model.md`.
//!
//! - `layout`, `root`: the jail's directories; `file_mount`, `access`, `exposer`: the host's files in them;
//!   `file_limit`: their length.
//! - `program`, `needs`: the VMM's file, and what it needs besides.
//! - `spec`: the container's configuration; `oci_runtime`: who makes the container.
//! - `cgroup`: the container's control groups.
//! - `record`, `undo`: what has to be undone, and undoing it, after whatever was killed.

mod access;
mod cache_topology;
mod cgroup;
mod copy;
mod cpuset;
mod drive_file;
mod error;
mod exposer;
mod file_limit;
mod file_mount;
mod idmap;
mod jailer;
mod layout;
mod loan;
mod member;
mod needs;
mod netns;
mod oci_runtime;
mod program;
mod record;
mod request;
mod root;
mod run_lock;
mod runc;
mod settings_file;
mod spec;
mod undo;
mod unjailed;
mod user;

pub use cgroup::CgroupError;
pub use cpuset::{CpusetBuilder, CpusetList, CpusetListError};
pub use drive_file::DriveFile;
pub use error::{JailError, StartError};
pub use file_mount::ExposeError;
pub use jailer::{Jailer, Role, Start};
pub use layout::LayoutError;
pub use needs::NeedsError;
pub use netns::NetnsError;
pub use oci_runtime::RuntimeError;
pub use record::RecordError;
pub use request::{ExposePolicy, JailRequest, Setup};
pub use runc::Runc;
pub use spec::TemplateError;
pub use undo::{UndoError, undo};
pub use unjailed::Unjailed;
pub use user::{User, UserError};
