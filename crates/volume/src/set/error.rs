//! Why a set cannot do what it was asked.

use std::io;
use std::path::PathBuf;

use fc_rootfs::mkfs::MkfsError;

use crate::VolumeError;

/// Why a set cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// Not one path component.
    #[error("{0:?} cannot be a volume's name, which must be a file name")]
    Name(String),
    /// Taken.
    #[error("A volume or provider called {0:?} is in the set already")]
    Exists(String),
    /// Unknown.
    #[error("failed to find volume {0:?}")]
    NotFound(String),
    /// Mounts depend on where the volumes are.
    #[error("The volumes are nowhere yet: prepare the set before asking for mounts")]
    NotPrepared,
    /// Not containerd's kind of name.
    #[error(
        "{0:?} cannot be a container's name, which is letters and digits with single `.`, `-` or `_` between"
    )]
    Container(String),
    /// Not a place inside an image.
    #[error(
        "{0:?} cannot be a volume of an image, which must be an absolute path below `/` without `..`"
    )]
    VolumePath(PathBuf),
    /// The container that prepares an image's volumes failed.
    #[error("The container that prepares the volumes of {name:?} ended with status {status}")]
    Init {
        /// The image's name in the set.
        name: String,
        /// How it ended.
        status: u32,
        /// What it said.
        #[source]
        said: io::Error,
    },
    /// A provider does not know its volumes.
    #[error("The provider {0:?} does not give its volumes")]
    Provider(String, #[source] io::Error),
    /// A volume's content.
    #[error("The directory {0:?} cannot be made a volume")]
    Content(PathBuf, #[source] io::Error),
    /// A volume's content.
    #[error("A volume cannot be copied")]
    Copy(#[source] VolumeError),
    /// The set's own directory.
    #[error("Volumes cannot be made in {0:?}")]
    Directory(PathBuf, #[source] io::Error),
    /// The image.
    #[error("No image can be made of the volumes; perhaps it is too small for them")]
    Mkfs(#[from] MkfsError),
}
