//! Why a snapshotter's mount is refused.

use std::io;
use std::path::PathBuf;

use crate::layers::LayerError;

/// Why a mount cannot be given to a VM. Each says which mount or option, and what can be used instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// An empty list.
    #[error("The task has no rootfs mount; create the container with a snapshot")]
    None,
    /// A mount for a place inside the rootfs comes first.
    #[error(
        "The first rootfs mount is for {0:?} inside the rootfs; there must be one for the rootfs itself before it"
    )]
    Target(String),
    /// A mount without a type that is no bind mount either; holds the source.
    #[error("The rootfs mount of {0:?} has no filesystem type")]
    NoType(String),
    /// A type such as `format/mkdir/overlay`, or a text with `{{ mount 0 }}`, for runtimes that expand them themselves.
    #[error(
        "The rootfs mount has {0:?}, a template that containerd's mount manager should have expanded; \
         use the overlayfs, blockfile or devmapper snapshotter"
    )]
    Template(String),
    /// An option that would lose its meaning in a VM.
    #[error(
        "The rootfs mount of type {fstype} has the option {option:?}, which cannot be used for a VM"
    )]
    Option {
        /// The mount's type.
        fstype: String,
        /// The option, with its value.
        option: String,
    },
    /// A path that depends on somebody's working directory.
    #[error("The rootfs mount names {0:?}, which is no absolute path")]
    Relative(PathBuf),
    /// A source that cannot be looked at.
    #[error("The rootfs mount's source {0:?} cannot be used")]
    Source(PathBuf, #[source] io::Error),
    /// A type other than `overlay` and `bind` whose source is neither device nor file.
    #[error(
        "The rootfs mount of type {fstype} has the source {source_path:?}, which is neither a block device nor an image \
         file; only overlay and bind mounts of directories can be made into an image"
    )]
    NotABlockDevice {
        /// The mount's type.
        fstype: String,
        /// The mount's source.
        source_path: PathBuf,
    },
    /// A bind mount of something that is no directory.
    #[error("The rootfs is a bind mount of {0:?}, which is no directory")]
    BindOfFile(PathBuf),
    /// An overlay without layers.
    #[error("The rootfs's overlay mount names no lowerdir")]
    NoLower,
    /// A layer that cannot be looked at.
    #[error("A layer that the rootfs mount names cannot be used")]
    Layer(#[from] LayerError),
}

impl MountError {
    /// Whether the mounts as such cannot be had in a VM, whatever is on the host.
    pub(crate) fn is_refusal(&self) -> bool {
        !matches!(self, Self::Source(..) | Self::Layer(_))
    }
}
