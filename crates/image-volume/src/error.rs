//! Why an image's volumes cannot be had, or are not cleaned up.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use fc_errors::chains;
use fc_rootfs::ViewError;
use fc_volume::SetError;

/// Why an image's volumes cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageVolumeError {
    /// Not fit for a header; holds the name.
    #[error("{0:?} cannot be a containerd namespace, which is visible ASCII characters")]
    Namespace(String),
    /// Nothing listens.
    #[error("Cannot connect to containerd at {0:?}")]
    Connect(PathBuf, #[source] tonic::transport::Error),
    /// A call failed.
    #[error("containerd cannot {action}")]
    Call {
        /// What for.
        action: &'static str,
        /// What containerd says.
        #[source]
        status: Box<tonic::Status>,
    },
    /// Not in the namespace.
    #[error(
        "There is no image {image:?} in containerd; run `ctr image pull --snapshotter {snapshotter} {image}`"
    )]
    NoImage {
        /// Its name.
        image: String,
        /// The snapshotter that is wanted.
        snapshotter: String,
    },
    /// Not configured.
    #[error("containerd has no snapshotter {0:?}")]
    NoSnapshotter(String),
    /// The layers are there, or some of them, but not as snapshots.
    #[error(
        "The image {image:?} is not unpacked for the snapshotter {snapshotter:?}; run \
         `ctr image pull --snapshotter {snapshotter} {image}`"
    )]
    NotUnpacked {
        /// The image's name.
        image: String,
        /// The snapshotter that was asked.
        snapshotter: String,
    },
    /// The configuration has none; holds the image's name.
    #[error("The image {0:?} declares no volumes")]
    NoVolumes(String),
    /// containerd did not pull.
    #[error(
        "containerd cannot pull the image {image:?} by itself, for which it must be 1.7 or newer; run `ctr image pull`"
    )]
    Pull {
        /// Its name.
        image: String,
        /// What containerd says.
        #[source]
        status: Box<tonic::Status>,
    },
    /// Holds the platform that is wanted.
    #[error("The image is not made for this machine's platform, {0}")]
    Platform(String),
    /// Neither OCI's nor Docker's; holds the media type.
    #[error("The image has content of the type {0:?}, which is no container image's")]
    MediaType(String),
    /// Not pulled, or collected; holds the digest.
    #[error("The image's content {0} is not in containerd; pull it for this platform again")]
    NoContent(String),
    /// More than a manifest, index or configuration has.
    #[error("The image's content {digest} has {size} bytes; at most {limit} are read")]
    TooLarge {
        /// Its digest.
        digest: String,
        /// Its size, as its descriptor says.
        size: i64,
        /// The limit.
        limit: i64,
    },
    /// More or less than the descriptor says; holds the digest.
    #[error("The image's content {0} has another size than the image says")]
    WrongSize(String),
    /// Holds the digest.
    #[error("The image's content {0} is malformed")]
    Json(String, #[source] serde_json::Error),
    /// A layer that is not identified by SHA-256; holds the configuration's digest.
    #[error("The image's configuration {0} lists a layer that is no SHA-256 digest")]
    DiffId(String),
    /// No name for a new snapshot.
    #[error("A unique name cannot be made")]
    Unique(#[source] io::Error),
    /// The mount point.
    #[error("No mount point can be made in {0:?}")]
    Directory(PathBuf, #[source] io::Error),
    /// Refused, or the kernel cannot.
    #[error("The image's content cannot be mounted")]
    Mount(#[source] ViewError),
    /// A volume's place in the image; holds the path.
    #[error("The volume {0:?} cannot be found in the image")]
    Volume(String, #[source] io::Error),
    /// A volume that is the whole image, or has a relative path.
    #[error("The image's volume {0:?} is not an absolute path of a directory below `/`")]
    VolumePath(String),
    /// A volume's name.
    #[error("An image's volume cannot be one of a set's")]
    Set(#[from] SetError),
    /// The thread that did the work ended early: it panicked, or the runtime is shutting down.
    #[error("Mounting the image's content was stopped")]
    Stopped(#[source] tokio::task::JoinError),
    /// The mount point stays.
    #[error("{0:?}, where the image's content was mounted, cannot be cleaned up")]
    Unmount(PathBuf, #[source] io::Error),
}

/// What of an image's volumes could not be removed, all of it. Everything else was; doing it again tries these again.
#[derive(Debug)]
pub struct DeleteError(pub Vec<ImageVolumeError>);

impl DeleteError {
    pub(crate) fn of(failures: Vec<ImageVolumeError>) -> Result<(), DeleteError> {
        if failures.is_empty() {
            return Ok(());
        }
        Err(DeleteError(failures))
    }
}

impl fmt::Display for DeleteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chains(&self.0))
    }
}

impl Error for DeleteError {}
