//! The VMM's process.

mod command;
mod end;
mod format;
mod launch;
mod output;
mod process;
mod running;
mod version;

pub use command::{StartedVmm, VmmCommand};
pub(crate) use end::Exit;
pub use end::{ProcessExit, StopError, VmmEnd};
pub use launch::LaunchError;
pub use running::Vmm;
pub use version::{MINIMUM_VERSION, Version};
