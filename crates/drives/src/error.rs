//! Why a drive could not be attached or detached.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use fc_errors::{chain, chains};

use crate::backend::BackendError;
use crate::options::OptionError;
use crate::slots::Kind;

/// What was being done to a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Letting the VMM see the file.
    Expose,
    /// Having the VMM open the file.
    Patch,
    /// Having the guest mount it.
    Mount,
    /// Having the guest unmount it.
    Unmount,
    /// Having the VMM go back to the stub.
    PatchBack,
    /// Taking the file out of the VMM's sight.
    Withdraw,
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Step::Expose => "be made visible to the VMM",
            Step::Patch => "be opened by the VMM",
            Step::Mount => "be mounted in the guest",
            Step::Unmount => "be unmounted in the guest",
            Step::PatchBack => "be swapped back to its stub by the VMM",
            Step::Withdraw => "be taken out of the VMM's sight",
        })
    }
}

/// Why a drive could not be attached or detached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriveError {
    /// Every slot of that kind is in use. The first words are the original's.
    #[error("There are no remaining drives to be used: {}", exhausted(*.kind, *.limit, *.quarantined))]
    Exhausted {
        /// Which kind.
        kind: Kind,
        /// How many the VM has.
        limit: usize,
        /// How many of them are unusable because detaching them failed.
        quarantined: usize,
        /// Why the running VM cannot get another one.
        source: BackendError,
    },
    /// The VM has no such drive mount.
    #[error("The VM was created without a drive mount number {0}")]
    NoSuchDriveMount(usize),
    /// The drive mount is mounted already.
    #[error("Drive mount number {0} is already in use")]
    DriveMountInUse(usize),
    /// The owner has a drive at that destination. The last words are the original's.
    #[error(
        "Drive {drive_id} is mounted at {destination} already: drive with ID {owner} already in use"
    )]
    InUse {
        /// The VMM's name for the drive that is there.
        drive_id: String,
        /// Who asked.
        owner: String,
        /// For where.
        destination: String,
    },
    /// A file that was opened, and locked, for reading only, for a drive that can be written to.
    #[error("{} is open for reading only, and the drive can be written to", .0.display())]
    NotWritable(PathBuf),
    /// A file that is no larger than a stub, so that the guest could not tell whether it has taken the stub's place.
    #[error("{} has only {bytes} bytes: no filesystem is as small as that", path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A file cannot be looked at.
    #[error("{} cannot be looked at", path.display())]
    Look {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `ro` or `rw` where the drive is the other.
    #[error("The drive cannot be mounted as asked")]
    Options(#[from] OptionError),
    /// One step failed; every step before it was undone, if `undo` is `None`.
    #[error(
        "Drive {drive_id} with {} for {owner:?} cannot {step}{}",
        host_path.display(), besides(.undo.as_deref())
    )]
    Attach {
        /// The VMM's name for the drive.
        drive_id: String,
        /// The file or block device on the host.
        host_path: PathBuf,
        /// Who wanted it.
        owner: String,
        /// Which step.
        step: Step,
        /// Why.
        source: BackendError,
        /// What went wrong when undoing; the slot is quarantined then.
        undo: Option<Box<DriveError>>,
    },
    /// One step failed; the slot is quarantined until a later detach succeeds.
    #[error("Drive {drive_id} cannot {step}; it is set aside until that succeeds")]
    Detach {
        /// The VMM's name for the drive.
        drive_id: String,
        /// Which step.
        step: Step,
        /// Why.
        source: BackendError,
    },
    /// That use of the slot is over. The last words are the original's.
    #[error("Drive {drive_id} is not attached any more: container {owner} drive was not found")]
    NotAttached {
        /// The VMM's name for the drive.
        drive_id: String,
        /// Who had it.
        owner: String,
    },
    /// The task that did the work ended early: it panicked, or the runtime is shutting down.
    #[error("Working on a drive was stopped")]
    Stopped(#[source] tokio::task::JoinError),
}

fn exhausted(kind: Kind, limit: usize, quarantined: usize) -> String {
    let (noun, remedy) = match kind {
        Kind::Writable => ("container", CONTAINERS),
        Kind::ReadOnly => ("read-only image", IMAGES),
        Kind::Volume => ("volume", "VolumeSlots when creating the VM"),
    };
    let stuck = match (quarantined, limit) {
        (0, _) => String::new(),
        (_, 1) => " (it could not be detached)".to_owned(),
        (count, _) => format!(" ({count} of them could not be detached)"),
    };
    match limit {
        0 => format!("the VM was created without {noun} drives; set {remedy}"),
        1 => format!("the only {noun} drive of the VM is in use{stuck}; set a larger {remedy}"),
        limit => {
            format!("all {limit} {noun} drives of the VM are in use{stuck}; set a larger {remedy}")
        }
    }
}

/// What the number of containers' drives follows from.
const CONTAINERS: &str = "ContainerCount when creating the VM, or default_container_count in the runtime's configuration";
/// And that of images. A VMM has room for few devices (19 with Firecracker): what more containers' own drives take, images
/// do not get.
const IMAGES: &str = "ContainerCount (up to 8: with more, a VM has less room for images) or, for volumes, \
    ReadOnlyVolumeSlots when creating the VM, or default_container_count in the runtime's configuration";

/// Not the source of the error, so its chain must be part of the text.
fn besides(undo: Option<&DriveError>) -> String {
    undo.map_or_else(String::new, |undo| format!(" (besides: {})", chain(undo)))
}

/// Every error of detaching several drives.
#[derive(Debug)]
pub struct DetachErrors(pub Vec<DriveError>);

impl fmt::Display for DetachErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&chains(&self.0))
    }
}

impl Error for DetachErrors {}
