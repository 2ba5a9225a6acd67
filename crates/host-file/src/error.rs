//! Why a VM cannot have a file of the host.

use std::io;
use std::path::PathBuf;

use crate::Access;

/// Why a VM cannot have a file of the host. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostFileError {
    /// The path depends on a working directory.
    #[error("{} is not an absolute path", .0.display())]
    RelativePath(PathBuf),
    /// There is no such file, or it cannot be opened as it is needed.
    #[error("Cannot open {} for {}", path.display(), purpose(*access))]
    Open {
        /// The file.
        path: PathBuf,
        /// What for.
        access: Access,
        /// Why.
        source: io::Error,
    },
    /// It cannot be made.
    #[error("Cannot make {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a FIFO, a directory or the like.
    #[error("{} is {what}, neither a regular file nor a block device", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Somebody else has it locked.
    #[error("{} is in use: {}", path.display(), holder(*access))]
    InUse {
        /// The file.
        path: PathBuf,
        /// What it is wanted for.
        access: Access,
    },
    /// The host's kernel uses the block device.
    #[error(
        "{} is in use: the host has it mounted, it is part of another device, or another VM or container writes to it",
        .0.display()
    )]
    Claimed(PathBuf),
    /// It cannot be locked at all.
    #[error("Cannot lock {}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl HostFileError {
    /// Whether the path is at fault: what is there, if anything, can never be a drive.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::RelativePath(_) | Self::Kind { .. })
    }

    /// Whether somebody else uses the file: it can be had once they let go of it.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Claimed(_))
    }
}

fn purpose(access: Access) -> &'static str {
    match access {
        Access::Read => "reading",
        Access::Write => "reading and writing",
    }
}

/// Who can stand in the way of that access.
fn holder(access: Access) -> &'static str {
    match access {
        Access::Read => {
            "another VM or container writes to it; it can be shared only if all of them mount it read-only"
        }
        Access::Write => {
            "another VM or container reads or writes it; what is written to has one user at a time"
        }
    }
}
