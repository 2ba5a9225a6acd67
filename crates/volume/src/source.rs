//! The ways in which a host's files get into a guest, behind one interface.

use fc_host_file::HostFile;

use crate::{Request, Volume, VolumeError};

/// One way to give a guest what is on the host.
///
/// Each volume is provided by the first source that takes it. `takes` and `slots` decide from the spec
/// alone and touch nothing, so that a VM can be given the slots before it exists.
pub trait VolumeSource: Send + Sync {
    /// Whether this source is the one for `volume`.
    fn takes(&self, volume: &Volume) -> bool;

    /// How many slots it needs for `volumes`, all of which it takes.
    fn slots(&self, volumes: &[Volume]) -> Slots;

    /// Makes `volumes` available. Blocks; leaves nothing behind when it fails.
    ///
    /// # Errors
    /// When one of them is refused or cannot be read; the error names it.
    fn provide(&self, volumes: &[Volume], request: &Request) -> Result<Provided, VolumeError>;
}

/// Slots for drives, in a VM that is yet to be created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slots {
    /// Slots that the guest cannot write to.
    pub read_only: u32,
    /// Slots that it can write to.
    pub writable: u32,
}

impl std::ops::Add for Slots {
    type Output = Slots;

    fn add(self, other: Slots) -> Slots {
        Slots {
            read_only: self.read_only.saturating_add(other.read_only),
            writable: self.writable.saturating_add(other.writable),
        }
    }
}

/// A file or device to attach to a slot of the VM and to mount in the guest.
#[derive(Debug, Clone)]
pub struct Drive {
    /// The file or device on the host, open and locked. One that was made for the volume is removed with the last who
    /// keeps it.
    pub file: HostFile,
    /// Where to mount it in the guest.
    pub destination: String,
    /// Type of the filesystem in it.
    pub fstype: String,
    /// Options to mount it with, without `ro` and `rw`.
    pub options: Vec<String>,
    /// Whether it must be attached to a slot that the guest cannot write to.
    pub read_only: bool,
}

/// A mount of the spec as the guest is to have it: a bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestMount {
    /// Its place in the spec's list of mounts ([`Volume::number`]).
    pub number: usize,
    /// The path in the guest to bind.
    pub source: String,
    /// Options, among them `bind` or `rbind`.
    pub options: Vec<String>,
}

/// What a [`VolumeSource`] made.
#[derive(Debug, Default)]
pub struct Provided {
    /// Drives to attach.
    pub drives: Vec<Drive>,
    /// One for each volume.
    pub mounts: Vec<GuestMount>,
}
