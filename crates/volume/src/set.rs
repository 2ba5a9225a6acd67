//! Named volumes that a client makes before a VM or container exists, and that several containers share.
//!
//! ```no_run
//! # fn main() -> Result<(), fc_volume::SetError> {
//! use fc_volume::{HostVolume, Set, VolumeMount};
//!
//! let mut set = Set::new();
//! set.add(HostVolume::empty("scratch")?)?;
//! set.add(HostVolume::from_host("content", "/srv/www")?)?;
//! let image = set.prepare_drive_mount(64 << 20)?;
//! // image.drive_mount() goes into CreateVMRequest.DriveMounts; keep `image` while the VM lives.
//! let mounts = set.mounts(&[VolumeMount::new("content", "/usr/share/www").read_only()])?;
//! // `mounts` go into the container's spec.
//! # Ok(())
//! # }
//! ```

mod error;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use fc_proto::control::FirecrackerDriveMount;
use fc_rootfs::mkfs;
use serde_json::{Value, json};

pub use self::error::SetError;
use crate::budget::Budget;
use crate::guest::GuestImage;
use crate::tree::Tree;

/// Where a set's drive is mounted in a VM.
pub const VM_PATH: &str = "/vmv";
const MIB: u64 = 1 << 20;

/// A volume whose content comes from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostVolume {
    name: String,
    content: Option<PathBuf>,
}

impl HostVolume {
    /// An empty directory called `name`, mode 0755.
    ///
    /// # Errors
    /// When `name` is no file name.
    pub fn empty(name: &str) -> Result<HostVolume, SetError> {
        check_name(name)?;
        Ok(HostVolume {
            name: name.to_owned(),
            content: None,
        })
    }

    /// A volume called `name` with a copy of the directory `content`, an absolute path.
    ///
    /// # Errors
    /// When `name` is no file name.
    pub fn from_host(name: &str, content: impl Into<PathBuf>) -> Result<HostVolume, SetError> {
        Ok(HostVolume {
            content: Some(content.into()),
            ..HostVolume::empty(name)?
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Something that has several volumes to offer, such as an image that declares them.
pub trait VolumeProvider {
    /// Its name, for errors and [`Set::mounts_of`].
    fn name(&self) -> &str;

    /// Its volumes, each with the path in a container at which it belongs.
    ///
    /// # Errors
    /// Whatever keeps it from knowing.
    fn volumes(&self) -> io::Result<Vec<(HostVolume, String)>>;
}

/// A bind mount of a volume in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    volume: String,
    destination: String,
    read_only: bool,
}

impl VolumeMount {
    /// The volume called `volume` at `destination` in the container, writable.
    #[must_use]
    pub fn new(volume: &str, destination: &str) -> VolumeMount {
        VolumeMount {
            volume: volume.to_owned(),
            destination: destination.to_owned(),
            read_only: false,
        }
    }

    /// The same, but read-only.
    #[must_use]
    pub fn read_only(self) -> VolumeMount {
        VolumeMount {
            read_only: true,
            ..self
        }
    }
}

/// Volumes that go to a VM or container together.
#[derive(Debug)]
pub struct Set {
    volumes: Vec<HostVolume>,
    /// Of providers: name and mounts.
    provided: Vec<(String, Vec<VolumeMount>)>,
    /// Of images in the guest: name, and mounts, which do not depend on this set's place.
    guests: Vec<(String, Vec<Value>)>,
    dir: PathBuf,
    mkfs_ext4: PathBuf,
    /// Where the volumes are for a container, once they are somewhere.
    place: Option<PathBuf>,
}

impl Default for Set {
    fn default() -> Set {
        Set::new()
    }
}

impl Set {
    /// An empty set, whose files are made in the system's directory for temporary ones.
    #[must_use]
    pub fn new() -> Set {
        Set::in_directory(std::env::temp_dir())
    }

    /// An empty set, whose files are made in `dir`.
    #[must_use]
    pub fn in_directory(dir: impl Into<PathBuf>) -> Set {
        Set {
            volumes: Vec::new(),
            provided: Vec::new(),
            guests: Vec::new(),
            dir: dir.into(),
            mkfs_ext4: "mkfs.ext4".into(),
            place: None,
        }
    }

    /// Adds a volume.
    ///
    /// # Errors
    /// When there is one of that name.
    pub fn add(&mut self, volume: HostVolume) -> Result<(), SetError> {
        if self.volumes.iter().any(|other| other.name == volume.name) {
            return Err(SetError::Exists(volume.name));
        }
        self.volumes.push(volume);
        Ok(())
    }

    /// Adds everything that `provider` has.
    ///
    /// # Errors
    /// When a provider or volume of the same name is there; the set is unchanged then.
    pub fn add_from(&mut self, provider: &dyn VolumeProvider) -> Result<(), SetError> {
        let name = provider.name();
        self.check_provider(name)?;
        let volumes = provider
            .volumes()
            .map_err(|error| SetError::Provider(name.to_owned(), error))?;
        let before = self.volumes.len();
        let mut mounts = Vec::new();
        for (volume, destination) in volumes {
            mounts.push(VolumeMount::new(&volume.name, &destination));
            if let Err(error) = self.add(volume) {
                self.volumes.truncate(before);
                return Err(error);
            }
        }
        self.provided.push((name.to_owned(), mounts));
        Ok(())
    }

    /// Adds the volumes of an image that a container in the VM prepares. They are no part of this set's drive
    /// mount or directory; [`Set::mounts_of`] gives their mounts at once, to be used when that container has
    /// ended well ([`GuestImage::check`]).
    ///
    /// # Errors
    /// When a provider or image of the same name is there.
    pub fn add_guest(&mut self, image: &GuestImage) -> Result<(), SetError> {
        self.check_provider(image.name())?;
        let mounts = image
            .places()
            .map(|(volume, place)| bind(&place, &volume.to_string_lossy(), "rw"));
        self.guests
            .push((image.name().to_owned(), mounts.collect()));
        Ok(())
    }

    /// The name of a provider or image must be new.
    fn check_provider(&self, name: &str) -> Result<(), SetError> {
        let provided = self.provided.iter().map(|(other, _)| other);
        let guests = self.guests.iter().map(|(other, _)| other);
        if provided.chain(guests).any(|other| other == name) {
            return Err(SetError::Exists(name.to_owned()));
        }
        Ok(())
    }

    /// Makes an ext4 image of `size` bytes with all volumes for a VM, writable, to be mounted at [`VM_PATH`].
    /// Blocks.
    ///
    /// # Errors
    /// When it is too small for the content, or that cannot be read; nothing is left behind.
    pub fn prepare_drive_mount(&mut self, size: u64) -> Result<VolumeImage, SetError> {
        let program = mkfs::find(&self.mkfs_ext4, "e2fsprogs")?;
        let failed = |error| SetError::Directory(self.dir.clone(), error);
        let image = tempfile::Builder::new()
            .prefix("volumes.")
            .suffix(".ext4")
            .tempfile_in(&self.dir)
            .map_err(failed)?;
        let size = size.checked_next_multiple_of(MIB);
        size.ok_or(io::ErrorKind::FileTooLarge.into())
            .and_then(|size| image.as_file().set_len(size))
            .map_err(failed)?;
        let content = tempfile::tempdir_in(&self.dir).map_err(failed)?;
        let mut command = mkfs::ext4(&program, "^resize_inode", image.path(), content.path());
        for volume in &self.volumes {
            let place = content.path().join(&volume.name);
            make_dir(&place).map_err(failed)?;
            if let Some(from) = &volume.content {
                // Before mkfs fails with less to say.
                let wrong = |error| SetError::Content(from.clone(), error);
                if !fs::metadata(from).map_err(wrong)?.is_dir() {
                    return Err(wrong(io::ErrorKind::NotADirectory.into()));
                }
                mkfs::bind_for(&mut command, from, &place).map_err(failed)?;
            }
        }
        mkfs::run(&mut command)?;
        self.place = Some(VM_PATH.into());
        Ok(VolumeImage(image.into_temp_path()))
    }

    /// Makes a directory with all volumes, for containers of the host itself. Blocks.
    ///
    /// # Errors
    /// When content cannot be copied; nothing is left behind.
    pub fn prepare_directory(&mut self) -> Result<VolumeDirectory, SetError> {
        let failed = |error| SetError::Directory(self.dir.clone(), error);
        let dir = tempfile::Builder::new()
            .prefix("volumes.")
            .tempdir_in(&self.dir)
            .map_err(failed)?;
        for volume in &self.volumes {
            let place = dir.path().join(&volume.name);
            match &volume.content {
                None => make_dir(&place).map_err(failed)?,
                Some(from) => {
                    let tree = Tree::open(&volume.name, from, false).map_err(SetError::Copy)?;
                    let mut unlimited = Budget::new(u64::MAX);
                    tree.copy(&place, &mut unlimited).map_err(SetError::Copy)?;
                }
            }
        }
        self.place = Some(dir.path().to_owned());
        Ok(VolumeDirectory(dir))
    }

    /// The bind mounts for a container's spec.
    ///
    /// # Errors
    /// When a volume is not in the set, or the set was not prepared yet.
    pub fn mounts(&self, mounts: &[VolumeMount]) -> Result<Vec<Value>, SetError> {
        let place = self.place.as_ref().ok_or(SetError::NotPrepared)?;
        mounts
            .iter()
            .map(|mount| self.mount(place, mount))
            .collect()
    }

    /// The bind mounts for everything that the provider or guest's image called `name` has.
    ///
    /// # Errors
    /// When there is none of that name, or the set was not prepared yet (which those of images need not be).
    pub fn mounts_of(&self, name: &str) -> Result<Vec<Value>, SetError> {
        if let Some((_, mounts)) = self.guests.iter().find(|(guest, _)| guest == name) {
            return Ok(mounts.clone());
        }
        let found = self.provided.iter().find(|(provider, _)| provider == name);
        let (_, mounts) = found.ok_or_else(|| SetError::NotFound(name.to_owned()))?;
        self.mounts(mounts)
    }

    fn mount(&self, place: &Path, mount: &VolumeMount) -> Result<Value, SetError> {
        if !self
            .volumes
            .iter()
            .any(|volume| volume.name == mount.volume)
        {
            return Err(SetError::NotFound(mount.volume.clone()));
        }
        let access = if mount.read_only { "ro" } else { "rw" };
        Ok(bind(&place.join(&mount.volume), &mount.destination, access))
    }
}

fn bind(source: &Path, destination: &str, access: &str) -> Value {
    json!({
        "type": "bind",
        "source": source,
        "destination": destination,
        "options": ["bind", access],
    })
}

/// An image with a set's volumes; removed with this value.
#[derive(Debug)]
pub struct VolumeImage(tempfile::TempPath);

impl VolumeImage {
    /// The file on the host, mode 0600.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What to put into `CreateVMRequest.DriveMounts`.
    #[must_use]
    pub fn drive_mount(&self) -> FirecrackerDriveMount {
        FirecrackerDriveMount {
            HostPath: self.0.to_string_lossy().into_owned(),
            VMPath: VM_PATH.to_owned(),
            FilesystemType: "ext4".to_owned(),
            IsWritable: true,
            ..FirecrackerDriveMount::default()
        }
    }
}

/// A directory with a set's volumes; removed with this value.
#[derive(Debug)]
pub struct VolumeDirectory(tempfile::TempDir);

impl VolumeDirectory {
    /// The directory on the host, in which each volume has its name.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path)
}

fn check_name(name: &str) -> Result<(), SetError> {
    let mut components = Path::new(name).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(only)), None) if only == name => Ok(()),
        _ => Err(SetError::Name(name.to_owned())),
    }
}
