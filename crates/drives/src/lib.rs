//! The drive slots of one VM and who uses them.
//!
//! A VM gets its drives at boot and no more later. So each is a slot: it begins
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
//! [`Exposer`], [`DrivePatcher`] and [`GuestMounter`].
//!
//! Whoever needs a drive asks [`Drives::attach`] for one of a [`Kind`] and learns only its id, so a VMM that
//! can add drives later changes nothing for them. Until then, running out of slots is an error
//! that says what to set before the next boot.

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

pub use backend::{BackendError, DrivePatcher, Exposer, GuestMounter};
pub use drives::{Attach, AttachedDrive, Drives};
pub use error::{DetachErrors, DriveError, Step};
pub use links::Links;
pub use options::OptionError;
pub use slots::{Held, Kind, SlotId, SlotInfo, SlotState, SlotUse};
pub use stubs::{BootDrive, CreateError, DriveMountSlot, Layout, StubDrives};
