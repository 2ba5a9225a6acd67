//! QEMU as a child process: found, described on a command line, started, spoken to, ended.

mod command;
mod devices;
mod error;
mod freeze;
mod locate;
mod process;
mod qmp;

pub use command::{Link, Plan, PlannedDrive, PlannedInterface};
pub use devices::{
    BALLOON_ID, BELL_NODE, MAX_DEVICES, drive_device_id, drive_node, drive_node_name,
};
pub use error::QemuError;
pub use freeze::Frozen;
pub use locate::{QEMU_VARIABLE, find};
pub use process::{End, Process};
pub use qmp::{Event, Qmp};
