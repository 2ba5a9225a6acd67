//! The VMM's process.

mod command;
mod end;
mod format;
mod launch;
mod output;
mod process;
mod version;

pub use command::VmmCommand;
pub(crate) use end::Exit;
pub use end::VmmEnd;
pub use launch::LaunchError;
pub use process::Vmm;
pub use version::{MINIMUM_VERSION, Version};
