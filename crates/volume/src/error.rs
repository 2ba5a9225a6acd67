//! Why a container's mounts cannot be given to a VM.

use std::io;
use std::path::PathBuf;

use fc_host_file::HostFileError;
use fc_rootfs::mkfs::MkfsError;

/// Why a container's mounts cannot be given to a VM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// Not JSON.
    #[error("The container's configuration is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// JSON of the wrong shape; says where.
    #[error("The container's configuration is malformed: {0}")]
    Malformed(String),
    /// The annotation names a destination without a mount.
    #[error("Annotation {annotation} names {0:?}, at which nothing is mounted", annotation = crate::COPY_ANNOTATION)]
    UnknownCopy(String),
    /// A mount that cannot be had in a VM.
    #[error("The mount at {destination} cannot be given to a VM")]
    Refused {
        /// Where it is in the container.
        destination: String,
        /// Why not, and what to do instead.
        #[source]
        why: Refusal,
    },
    /// Its image or device cannot be had.
    #[error("The mount at {destination} cannot be given to a VM")]
    Image {
        /// Where it is in the container.
        destination: String,
        /// Why.
        source: HostFileError,
    },
    /// The image of the container's copies cannot be made.
    #[error(transparent)]
    Own(#[from] HostFileError),
    /// Something of the host cannot be read.
    #[error("The mount at {destination} cannot be prepared: cannot {action} {}", path.display())]
    Source {
        /// Where it is in the container.
        destination: String,
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        error: io::Error,
    },
    /// A file of the container's in the VM's directory cannot be made.
    #[error("Cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        error: io::Error,
    },
    /// The memory filesystem in which copies are collected cannot be made.
    #[error("Copies of the host's files cannot be collected; this needs root (CAP_SYS_ADMIN)")]
    Staging(#[source] io::Error),
    /// No image could be made of the copies.
    #[error("No image can be made of the host's files")]
    Mkfs(#[from] MkfsError),
    /// A path of the caller's depends on a working directory.
    #[error("{0:?} is not an absolute path; files for a container's volumes need one")]
    RelativePath(PathBuf),
    /// The thread that did the work ended early: it panicked, or the runtime is shutting down.
    #[error("Preparing the container's mounts was stopped")]
    Stopped(#[source] tokio::task::JoinError),
}

impl VolumeError {
    /// Whether the request is at fault rather than the host: the same request will fail again.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            VolumeError::Json(_)
                | VolumeError::Malformed(_)
                | VolumeError::UnknownCopy(_)
                | VolumeError::Refused { .. }
        ) || matches!(self, VolumeError::Image { source, .. } if source.is_refusal())
    }

    /// Whether somebody else uses an image or device among the mounts' sources: the same request can succeed later.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self, VolumeError::Image { source, .. } if source.is_in_use())
    }
}

/// Why a mount is refused. Each says what can be done instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A path that is not absolute, or goes upwards.
    #[error("Its source {0:?} is no absolute path without `..`")]
    RelativeSource(PathBuf),
    /// A type that neither a guest has of its own nor an image can have.
    #[error("{}", unknown_type(.0))]
    UnknownType(String),
    /// An option that loses its meaning.
    #[error("Its option {0:?} cannot be honoured in a VM, which has its own mounts and devices")]
    Option(String),
    /// A bind mount through which the container would write to the host.
    #[error(
        "It is a writable bind mount of {0:?}, and a VM does not write to the host's directories: mount it with `ro`, \
         give it as an image (type=ext4) or a drive mount, or accept a copy whose changes are lost with the annotation {annotation}",
        annotation = crate::COPY_ANNOTATION
    )]
    Writable(PathBuf),
    /// More than may be copied.
    #[error(
        "{} holds {size}, and {left} of the {limit} that may be copied for one container are left: give it as an image \
         (type=erofs or ext4) or a drive mount, or raise volume_copy_limit_mib",
        path.display()
    )]
    TooLarge {
        /// What was to be copied.
        path: PathBuf,
        /// How much it is, in words.
        size: String,
        /// What other mounts have left of the limit, in words.
        left: String,
        /// The limit, in words.
        limit: String,
    },
    /// Something that cannot be copied; says what it is.
    #[error("{path:?} is a {what}, which cannot be copied into a VM")]
    Special {
        /// Its path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A block device in a bind mount.
    #[error(
        "{0:?} is a block device: give it with its filesystem's type (type=ext4, ...) instead of as a bind mount"
    )]
    BlockDevice(PathBuf),
    /// A directory of a filesystem that shows the host's kernel.
    #[error(
        "{path:?} is in the host's {fstype}; a VM has a kernel of its own: mount {fstype} by its type"
    )]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// The filesystem's type.
        fstype: &'static str,
    },
    /// Directories nested too deep.
    #[error("{path:?} is more than {limit} directories deep", limit = crate::tree::MAX_DEPTH)]
    TooDeep {
        /// The directory.
        path: PathBuf,
    },
    /// Nothing provides such mounts.
    #[error("Nothing that can provide {0:?} is set up")]
    NoSource(PathBuf),
    /// Another filesystem than the mount says, or none.
    #[error("{path:?} holds no {fstype} filesystem")]
    WrongFilesystem {
        /// The image.
        path: PathBuf,
        /// The mount's type.
        fstype: String,
    },
}

fn unknown_type(fstype: &str) -> String {
    if fstype.is_empty() {
        return "It has no type and is no bind mount".to_owned();
    }
    format!(
        "Its type {fstype:?} is not one that a VM can have: bind, ext4, xfs, btrfs, erofs, squashfs, or one of the \
         kernel's own such as tmpfs"
    )
}
