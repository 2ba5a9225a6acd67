//! From the mounts a snapshotter hands out to block images a VM can attach.
//!
//! - [`Mount`]: what containerd says; `mounts` decides what it means.
//! - `several`: what several mounts mean together.
//! - `layers`: which directories or images make up a rootfs, and their identity.
//! - `cache`: files made once and shared by all VMs of the host.
//! - `merge`: many layers become one read-only EROFS image.
//! - `disk`: a container's own writable ext4 disk.
//! - [`directory_in_root`]: a directory in a tree that is not to be left.
//! - [`mount_view`]: the same content on the host, for its own programs.
//! - [`mkfs`]: the programs that make filesystems in files, for other crates too.
//!
//! Nothing here knows of VMs, drives or guests. Everything a caller gets
//! ([`Image`], [`Disk`], [`HostFile`]) keeps its file: dropping it gives the file up.

mod cache;
mod disk;
mod erofs;
mod image;
mod import;
mod in_root;
mod layers;
mod loop_mount;
mod merge;
pub mod mkfs;
mod mounts;
mod several;
mod sparse;
mod view;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fc_host_file::{Access, HostFile, HostFileError};

use crate::cache::Cache;
pub use crate::cache::{CacheEntry, CacheError, EntryKind, ImageCache, Integrity};
pub use crate::disk::{Disk, DiskError};
pub use crate::image::Image;
#[cfg(feature = "fuzzing")]
pub use crate::import::read_for_fuzzing;
pub use crate::import::{ImportError, Imported, TarError, import_upper};
pub use crate::in_root::directory_in_root;
pub use crate::layers::LayerError;
pub use crate::merge::MergeError;
use crate::merge::Merger;
pub use crate::mounts::{Device, HOST_ONLY_OPTIONS, Mount, MountError, upper_dir};
use crate::mounts::{Plan, Writable};
use crate::several::Part;
pub use crate::view::{ViewError, mount_view};

/// Filesystem type of an [`Image`].
pub const IMAGE_FSTYPE: &str = "erofs";
/// Filesystem type of a [`Disk`].
pub const DISK_FSTYPE: &str = "ext4";
/// Directory on a [`Disk`] for an overlay's `upperdir`; has the mode and owner of the image's root, and what the
/// snapshot's upper directory already held.
pub const DISK_UPPER: &str = "upper";
/// Directory on a [`Disk`] for an overlay's `workdir`.
pub const DISK_WORK: &str = "work";

/// Annotation with the size in MiB of a container's writable disk, instead of the configured one.
pub const DISK_SIZE_ANNOTATION: &str = "aws.firecracker.disk.size_mib";
/// Annotation that asks for what the container wrote to be brought back to its snapshot: `true` or `false`.
pub const WRITE_BACK_ANNOTATION: &str = "aws.firecracker.disk.write_back";

/// The host's part of the settings, the same for every container.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Absolute path of the shared images' directory; made when missing, mode 0711.
    pub cache_dir: PathBuf,
    /// Bytes to which that directory may grow; what is in use stays even so.
    pub cache_size: u64,
    /// The program `mkfs.erofs` (erofs-utils 1.5 or newer): a path, or a name to look up in PATH.
    pub mkfs_erofs: PathBuf,
    /// The program `mkfs.ext4` (e2fsprogs 1.47 or newer): a path, or a name to look up in PATH.
    pub mkfs_ext4: PathBuf,
}

impl Settings {
    /// Settings for a cache of any size in `cache_dir`, with the programs found in PATH.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Settings {
        Settings {
            cache_dir: cache_dir.into(),
            cache_size: u64::MAX,
            mkfs_erofs: PathBuf::from("mkfs.erofs"),
            mkfs_ext4: PathBuf::from("mkfs.ext4"),
        }
    }
}

/// Where the files of one container go: absolute paths of files that do not exist yet.
#[derive(Debug, Clone)]
pub struct ContainerFiles {
    /// The writable disk.
    pub disk: PathBuf,
    /// Size of the writable disk in bytes, rounded up to whole MiB. It takes up space only where something is written.
    pub disk_size: u64,
    /// The container's own image, made only when its layers cannot be shared:
    /// the snapshot is a plain directory, a read-only one that has content of its own already, or several mounts.
    pub image: PathBuf,
}

/// A rootfs, ready to be attached to a VM.
#[derive(Debug)]
pub enum Prepared {
    /// One block device or image file, to be attached as it is.
    Device {
        /// What was asked for.
        device: Device,
        /// The file to attach, open and locked as the device is to be used.
        file: HostFile,
    },
    /// A read-only image of all layers, and what the container writes.
    Layers {
        /// Every layer, merged. Attach it read-only.
        image: Image,
        /// The container's own disk; `None` when the rootfs is read-only.
        disk: Option<Disk>,
    },
}

/// Turns mounts into block images; see the crate's description.
#[derive(Debug, Clone)]
pub struct Rootfs {
    settings: Arc<Settings>,
}

impl Rootfs {
    /// Makes a builder. Touches nothing until [`Rootfs::prepare`].
    pub fn new(settings: Settings) -> Rootfs {
        Rootfs {
            settings: Arc::new(settings),
        }
    }

    /// Prepares the rootfs that `mounts` describe.
    ///
    /// The work is done on a thread that may block, and goes on if the returned
    /// future is dropped; its result is then dropped too, which removes the container's files.
    ///
    /// # Errors
    /// When a mount or one of its options cannot be handled, or building fails; nothing is left behind.
    pub async fn prepare(
        &self,
        mounts: &[Mount],
        files: &ContainerFiles,
    ) -> Result<Prepared, RootfsError> {
        let settings = Arc::clone(&self.settings);
        let mounts = mounts.to_vec();
        let files = files.clone();
        for path in [&settings.cache_dir, &files.disk, &files.image] {
            if !path.is_absolute() {
                return Err(RootfsError::RelativePath(path.clone()));
            }
        }
        match tokio::task::spawn_blocking(move || prepare(&settings, &mounts, &files)).await {
            Ok(result) => result,
            Err(stopped) => Err(RootfsError::Stopped(stopped)),
        }
    }
}

fn prepare(
    settings: &Settings,
    mounts: &[Mount],
    files: &ContainerFiles,
) -> Result<Prepared, RootfsError> {
    let (parts, writable) = match mounts::plan(mounts)? {
        Plan::Device(device) => {
            let access = if device.read_only {
                Access::Read
            } else {
                Access::Write
            };
            let file = HostFile::open(&device.source, access)?;
            return Ok(Prepared::Device { device, file });
        }
        Plan::Layers { layers, writable } => (vec![Part::whole(layers)], writable),
        Plan::Several { parts, writable } => (parts, writable),
    };
    let cache = Cache::open(&settings.cache_dir)?.limited(settings.cache_size);
    let image = image_of(settings, &cache, &parts, &files.image)?;
    let (program, path, size) = (&settings.mkfs_ext4, &files.disk, files.disk_size);
    let disk = match writable {
        Writable::No => None,
        Writable::EmptyDisk => {
            let root = image.root_attributes()?;
            Some(Disk::create(&cache, program, path, size, root)?)
        }
        Writable::DiskWith(upper) => Some(Disk::create_with(&upper, program, path, size)?),
    };
    Ok(Prepared::Layers { image, disk })
}

fn image_of(
    settings: &Settings,
    cache: &Cache,
    parts: &[Part],
    private: &Path,
) -> Result<Image, RootfsError> {
    let merger = Merger::new(&settings.mkfs_erofs, cache.mount_point())?;
    let build = |path: &Path| Ok(merger.merge(parts, path)?);
    let key = match parts {
        [whole] => whole.layers.key(merger.identity())?,
        _ => None,
    };
    match key {
        Some(key) => cache.image(&key, build),
        None => Image::private(private, build),
    }
}

impl RootfsError {
    /// Whether the request is at fault rather than the host: the same request will fail again.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Mount(error) => error.is_refusal(),
            Self::File(error) => error.is_refusal(),
            Self::Merge(error) => error.is_refusal(),
            _ => false,
        }
    }

    /// Whether somebody else uses a device or image file among the mounts: the same request can succeed later.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::File(error) | Self::Merge(MergeError::Device(error)) if error.is_in_use())
    }
}

/// Why a rootfs could not be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootfsError {
    /// The mounts are none that a VM can use.
    #[error("The container's rootfs cannot be given to a VM")]
    Mount(#[from] MountError),
    /// The device or image file cannot be had.
    #[error("The container's rootfs cannot be attached to a VM")]
    File(#[from] HostFileError),
    /// A layer cannot be looked at.
    #[error("A layer of the container's rootfs cannot be used")]
    Layer(#[from] LayerError),
    /// The tools cannot be used.
    #[error("No image can be made of the container's rootfs")]
    Merge(#[from] MergeError),
    /// An image could not be made or opened.
    #[error("The image of the container's rootfs cannot be made or opened")]
    Cache(#[from] CacheError),
    /// The writable disk could not be made.
    #[error("The container's writable disk cannot be made")]
    Disk(#[from] DiskError),
    /// A path of the caller's depends on a working directory.
    #[error("{0:?} is not an absolute path; the image cache and a container's files need one")]
    RelativePath(PathBuf),
    /// The thread that did the work ended early: it panicked, or the runtime is shutting down.
    #[error("Preparing the container's rootfs was stopped")]
    Stopped(#[source] tokio::task::JoinError),
}
