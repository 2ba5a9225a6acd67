//! The drive slots of one VM and who uses them.
//!
//! A VM gets its drives at boot and, with the VMMs of today, no more later. So each is a slot: it begins
//! with a stub (`fc-stub-drive`), has a real file put behind it when something
//! needs a drive, and goes back to its stub afterwards.
//!
//! - `stubs`: the stub files, before boot ([`StubDrives`]).
//! - `slots`: which slot is free; plain data, no IO.
//! - `drives`: putting a file behind a slot and taking it away again ([`Drives`]).
//! - `links`: letting a VMM without a jail see a file ([`Links`]).
//! - `options`: what a slot's writability means for mount options.
//!
//! Nothing here knows the jail, the VMM's API or the guest's protocol: they are
//! [`Exposer`], [`DrivePatcher`], [`GuestMounter`] and [`HotPlug`].
//!
//! Whoever needs a drive asks [`Drives::attach`] for one of a [`Kind`] and learns only its id. When no slot is
//! free, [`HotPlug`] is asked for another: a VMM that can add drives to a running VM is a second implementation of
//! that, and changes nothing for the rest. [`BootOnly`] refuses, and the error says what to set
//! before the next boot.

#![forbid(unsafe_code)]

mod backend;
mod drives;
mod error;
mod links;
mod options;
mod slots;
mod stubs;
#[cfg(test)]
mod tests;
mod work;

pub use backend::{
    AddedDrive, BackendError, BootOnly, DrivePatcher, Exposer, FixedDrives, GuestMounter, HotPlug,
};
pub use drives::{Attach, AttachedDrive, Drives};
pub use error::{DetachErrors, DriveError, Step};
pub use links::Links;
pub use options::{OptionError, check_access};
pub use slots::{Kind, SlotId, SlotInfo, SlotState, SlotUse};
pub use stubs::{BootDrive, CreateError, DriveMountSlot, Layout, StubDrives};
