//! Volumes that container images declare, read from a snapshot by a client of containerd.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use fc_image_volume::{Containerd, ImageVolumes, Options};
//! use fc_volume::Set;
//!
//! let containerd = Containerd::connect("/run/containerd/containerd.sock".as_ref(), "default").await?;
//! let name = "docker.io/library/content:1";
//! let mut image = ImageVolumes::from_image(&containerd, name, &Options::default()).await?;
//! let mut set = Set::new();
//! set.add_from(&image)?;
//! let drive = set.prepare_drive_mount(64 << 20)?; // Blocks: on a thread that may.
//! image.delete().await?; // The drive has copies.
//! let mounts = set.mounts_of(name)?;
//! # Ok(())
//! # }
//! ```
//!
//! - `manifest`: what the image's configuration says.
//! - `view`: a read-only snapshot of the image, mounted, and gone without a trace.
//! - `client`, `wire`: the calls to containerd, and their messages.
//!
//! It is a crate of its own because nothing that runs per container or VM shall be linked with a gRPC client.

mod client;
mod error;
mod expiry;
mod manifest;
mod view;
mod wire;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use fc_rootfs::directory_in_root;
use fc_volume::{HostVolume, VolumeProvider};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

pub use crate::client::Containerd;
pub use crate::error::{DeleteError, ImageVolumeError};
use crate::manifest::Image;
use crate::view::View;

/// How [`ImageVolumes::from_image`] gets at an image.
#[derive(Debug, Clone)]
pub struct Options {
    snapshotter: String,
    pull: bool,
    dir: PathBuf,
    lifetime: Duration,
}

impl Default for Options {
    /// The snapshotter `overlayfs`; nothing is pulled; mounted in the system's directory for temporary files; a day.
    fn default() -> Options {
        Options {
            snapshotter: "overlayfs".to_owned(),
            pull: false,
            dir: std::env::temp_dir(),
            lifetime: Duration::from_secs(24 * 60 * 60),
        }
    }
}

impl Options {
    /// The snapshotter that the image is unpacked for.
    #[must_use]
    pub fn snapshotter(self, snapshotter: &str) -> Options {
        Options {
            snapshotter: snapshotter.to_owned(),
            ..self
        }
    }

    /// Has containerd pull the image, or unpack it, if that was not done for the snapshotter. Needs containerd 1.7 or
    /// newer, whose transfer service must be set up for the snapshotter; registries are asked without credentials.
    #[must_use]
    pub fn pull(self) -> Options {
        Options { pull: true, ..self }
    }

    /// An existing directory in which the image is mounted, in one of its own.
    #[must_use]
    pub fn directory(self, dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            ..self
        }
    }

    /// After how long containerd may remove the snapshot by itself if nobody has deleted it, because this process was
    /// killed, say. A snapshot in use goes, too.
    #[must_use]
    pub fn lifetime(self, lifetime: Duration) -> Options {
        Options { lifetime, ..self }
    }
}

/// The volumes that an image's configuration declares (`config.Volumes`), with what the image has there.
///
/// Each has a name of its own, whatever other images have; use [`fc_volume::Set::mounts_of`] with the image's name.
/// While this value exists, the image is mounted, read-only, and a snapshot and a lease of containerd exist, called
/// `image-volumes-` and a UUID. [`ImageVolumes::delete`] removes all of it, and should be called as soon as the set
/// was prepared; dropping does the same in the background. What a killed process leaves: a mount and its directory
/// `image.*`, for the administrator to unmount and remove; and the lease and snapshot, until the lease has expired
/// ([`Options::lifetime`]) and containerd collects garbage.
#[derive(Debug)]
pub struct ImageVolumes {
    image: String,
    volumes: Vec<(HostVolume, String)>,
    view: View,
}

impl ImageVolumes {
    /// Reads what the image called `image`, a full reference such as `docker.io/library/content:1`, declares for this
    /// machine's platform, and mounts its content. Needs root, and must be called in a tokio runtime with time enabled.
    ///
    /// A volume's path is looked up as if the image's root were `/`, whatever links there are. One that the image does
    /// not have is empty.
    ///
    /// # Errors
    /// When the image is not there, not unpacked for the snapshotter, or declares no volumes; when a volume is not a
    /// directory; when containerd or the kernel fails. Nothing is left then, nor when the future is dropped.
    pub async fn from_image(
        containerd: &Containerd,
        image: &str,
        options: &Options,
    ) -> Result<ImageVolumes, ImageVolumeError> {
        let Image { volumes, chain_id } = unpacked(containerd, image, options).await?;
        if volumes.is_empty() {
            return Err(ImageVolumeError::NoVolumes(image.to_owned()));
        }
        let dir = options.dir.clone();
        let (snapshotter, lifetime) = (&options.snapshotter, options.lifetime);
        let (mut view, root) = View::open(containerd, snapshotter, chain_id, dir, lifetime).await?;
        match find(&root, image, volumes) {
            Ok(volumes) => Ok(ImageVolumes {
                image: image.to_owned(),
                volumes,
                view,
            }),
            Err(error) => {
                if let Err(left) = view.remove().await {
                    tracing::warn!(error = %left, image, "the view of an image cannot be removed");
                }
                Err(error)
            }
        }
    }

    /// Unmounts the image and removes its snapshot and lease. Once that was done, doing it again does nothing.
    ///
    /// # Errors
    /// All that failed. The rest is done even so, and calling it again tries what is left.
    pub async fn delete(&mut self) -> Result<(), DeleteError> {
        self.volumes.clear();
        self.view.remove().await
    }
}

impl VolumeProvider for ImageVolumes {
    fn name(&self) -> &str {
        &self.image
    }

    fn volumes(&self) -> io::Result<Vec<(HostVolume, String)>> {
        if self.volumes.is_empty() {
            return Err(io::Error::other("They were deleted"));
        }
        Ok(self.volumes.clone())
    }
}

/// What the image says, if the snapshotter has its layers or can get them.
async fn unpacked(
    containerd: &Containerd,
    image: &str,
    options: &Options,
) -> Result<Image, ImageVolumeError> {
    match look_up(containerd, image, &options.snapshotter).await {
        Err(
            ImageVolumeError::NoImage { .. }
            | ImageVolumeError::NotUnpacked { .. }
            | ImageVolumeError::NoContent(_),
        ) if options.pull => {
            let pulled = containerd.pull(image, &options.snapshotter).await;
            pulled.map_err(|status| ImageVolumeError::Pull {
                image: image.to_owned(),
                status: Box::new(status),
            })?;
            look_up(containerd, image, &options.snapshotter).await
        }
        looked_up => looked_up,
    }
}

async fn look_up(
    containerd: &Containerd,
    image: &str,
    snapshotter: &str,
) -> Result<Image, ImageVolumeError> {
    let Some(found) = manifest::read(containerd, image).await? else {
        return Err(ImageVolumeError::NoImage {
            image: image.to_owned(),
            snapshotter: snapshotter.to_owned(),
        });
    };
    let layers = &found.chain_id;
    if !layers.is_empty() && !containerd.has_snapshot(snapshotter, layers).await? {
        return Err(ImageVolumeError::NotUnpacked {
            image: image.to_owned(),
            snapshotter: snapshotter.to_owned(),
        });
    }
    Ok(found)
}

/// Looks the volumes of `image`, which is mounted at `root`, up.
fn find(
    root: &Path,
    image: &str,
    volumes: Vec<String>,
) -> Result<Vec<(HostVolume, String)>, ImageVolumeError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = open(root, flags, Mode::empty())
        .map_err(|error| ImageVolumeError::Directory(root.to_owned(), error.into()))?;
    let volume = |path: String| {
        let name = volume_name(image, &path);
        let volume = match directory(&opened, root, &path)? {
            Some(content) => HostVolume::from_host(&name, content),
            None => HostVolume::empty(&name),
        };
        Ok((volume?, path))
    };
    volumes.into_iter().map(volume).collect()
}

/// The directory `path` in `root` without any link in it; `None` if there is none. The file system is read-only:
/// nobody makes a link of it later.
fn directory(root: &OwnedFd, at: &Path, path: &str) -> Result<Option<PathBuf>, ImageVolumeError> {
    let failed = |error: io::Error| ImageVolumeError::Volume(path.to_owned(), error);
    let refused = || ImageVolumeError::VolumePath(path.to_owned());
    if !Path::new(path).is_absolute() {
        return Err(refused());
    }
    let dir = match directory_in_root(root, Path::new(path)) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    let place = std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())).map_err(failed)?;
    if place.starts_with(at) && place != at {
        return Ok(Some(place));
    }
    Err(refused())
}

/// A name that no other volume of any image has, with the end of its path for people to read.
fn volume_name(image: &str, path: &str) -> String {
    let hash = Sha256::digest(format!("{image}\0{path}"));
    let hash = HEXLOWER.encode(&hash[..8]);
    match Path::new(path).components().next_back() {
        Some(Component::Normal(last)) if last.len() <= 64 => {
            format!("{hash}-{}", last.to_string_lossy())
        }
        _ => hash,
    }
}
