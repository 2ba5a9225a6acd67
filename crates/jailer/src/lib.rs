//! Where a VMM sees its files, how it is started, how it is stopped and cleaned up: without a jail
//! ([`Unjailed`]), or in a container of runc's ([`Runc`]); both behind [`Jailer`].
//!
//! Nothing here knows what a VM is for, or which file is which drive. What a jail promises is in
//! `docs/threat-model.md`.

mod cgroup;
mod copy;
mod cpuset;
mod netns;
mod record;
mod user;

pub use cgroup::CgroupError;
pub use cpuset::CpusetBuilder;
pub use netns::NetnsError;
pub use record::RecordError;
pub use user::{RootUser, User};
