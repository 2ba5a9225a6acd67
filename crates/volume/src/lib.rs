//! From a container's mounts to files a VM can attach; and volumes for clients.
//!
//! A container's `config.json` lists mounts that mean something on the host only. [`Volumes`] gives each
//! of them to the guest by one of its [`VolumeSource`]s, or refuses it by name:
//!
//! - [`Copies`]: small files and directories, copied at creation into one image per container;
//! - [`Images`]: filesystems in image files and on block devices, attached as they are.
//!
//! What is the guest's own (proc, tmpfs, what came with a drive mount) is left alone.
//!
//! [`Set`] is for clients: named volumes, made before a VM or container exists, and [`GuestImage`] for those
//! that a container in the VM makes.
//!
//! Nothing here knows of VMs, slots or guests beyond the paths they are told.

mod budget;
mod classify;
mod copies;
mod error;
mod guest;
mod images;
mod set;
mod source;
mod spec;
mod staging;
mod tree;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use crate::classify::{Volume, VolumeKind};
pub use crate::copies::{Copies, CopySettings};
pub use crate::error::{Refusal, VolumeError};
pub use crate::guest::GuestImage;
pub use crate::images::Images;
pub use crate::set::{
    HostVolume, Set, SetError, VM_PATH, VolumeDirectory, VolumeImage, VolumeMount, VolumeProvider,
};
pub use crate::source::{Drive, GuestMount, Provided, Slots, VolumeSource};
pub use crate::spec::COPY_ANNOTATION;

use crate::classify::{Class, classify};
use crate::spec::{Mount, Spec};

/// One container's volumes: where they go.
#[derive(Debug, Clone)]
pub struct Request {
    /// The container's directory in the guest, absolute. Drives are mounted below it, at `volumes` and
    /// `copies` (see [`Copies`]) and `volume-<n>` (see [`Images`]).
    pub guest_dir: String,
    /// Paths in the guest, besides `/container`, `/volumes` and `/vmv`, below which bind mounts' sources are
    /// the guest's: where the VM's drive mounts are.
    pub guest_paths: Vec<PathBuf>,
    /// Files to make.
    pub files: VolumeFiles,
}

/// Files of one container: absolute paths of files that do not exist yet, made only when needed.
#[derive(Debug, Clone)]
pub struct VolumeFiles {
    /// Image of the read-only copies.
    pub copies: PathBuf,
    /// Image of the writable copies.
    pub writable_copies: PathBuf,
    /// Size of that in bytes, more if its content needs more. It takes up space only where something is written.
    pub writable_size: u64,
}

/// Gives containers' mounts to guests; see the crate's description. Cheap to clone.
#[derive(Clone)]
pub struct Volumes {
    sources: Arc<[Box<dyn VolumeSource>]>,
}

impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Volumes({} sources)", self.sources.len())
    }
}

impl Volumes {
    /// Images are attached, anything else is copied.
    #[must_use]
    pub fn new(settings: CopySettings) -> Volumes {
        Volumes::with_sources(vec![Box::new(Images), Box::new(Copies::new(settings))])
    }

    /// Other ways: a volume is provided by the first of `sources` that takes it.
    #[must_use]
    pub fn with_sources(sources: Vec<Box<dyn VolumeSource>>) -> Volumes {
        Volumes {
            sources: sources.into(),
        }
    }

    /// How many slots the mounts in `spec` (a `config.json`) need at most. Looks at nothing else; mounts
    /// that [`Volumes::prepare`] will refuse do not count.
    ///
    /// # Errors
    /// When `spec` is malformed.
    pub fn slots(&self, spec: &[u8]) -> Result<Slots, VolumeError> {
        let spec = Spec::parse(spec)?;
        let volumes = classify(&spec, &[])?
            .into_iter()
            .filter_map(|class| match class {
                Class::Host(volume) => Some(volume),
                _ => None,
            });
        let (assigned, _) = self.assign(volumes.collect());
        let slots = assigned
            .iter()
            .map(|(source, volumes)| source.slots(volumes));
        Ok(slots.fold(Slots::default(), |sum, slots| sum + slots))
    }

    /// Makes the mounts in `spec` (a `config.json`) available to the guest.
    ///
    /// The work is done on a thread that may block, and goes on if the returned future is dropped; its
    /// result is then dropped too, which removes the files.
    ///
    /// # Errors
    /// When one mount is refused or cannot be prepared; nothing is left behind.
    pub async fn prepare(&self, spec: &[u8], request: &Request) -> Result<Prepared, VolumeError> {
        for path in [&request.files.copies, &request.files.writable_copies] {
            if !path.is_absolute() {
                return Err(VolumeError::RelativePath(path.clone()));
            }
        }
        let (volumes, spec, request) = (self.clone(), spec.to_vec(), request.clone());
        match tokio::task::spawn_blocking(move || volumes.prepare_now(&spec, &request)).await {
            Ok(result) => result,
            Err(stopped) => Err(VolumeError::Stopped(stopped)),
        }
    }

    fn prepare_now(&self, spec: &[u8], request: &Request) -> Result<Prepared, VolumeError> {
        let mut spec = Spec::parse(spec)?;
        let mounts = spec.mounts()?;
        let mut hosts = Vec::new();
        for (number, class) in classify(&spec, &request.guest_paths)?
            .into_iter()
            .enumerate()
        {
            match class {
                Class::Guest => {}
                Class::Marked(mount) => spec.replace(number, &mount),
                Class::Host(volume) => hosts.push(volume),
                Class::Refused(error) => return Err(error),
            }
        }
        let mut prepared = Prepared {
            spec: Vec::new(),
            drives: Vec::new(),
        };
        let (assigned, unclaimed) = self.assign(hosts);
        if let Some(volume) = unclaimed {
            return Err(VolumeError::Refused {
                destination: volume.destination,
                why: Refusal::NoSource(volume.source),
            });
        }
        for (source, volumes) in assigned {
            let provided = source.provide(&volumes, request)?;
            for mount in &provided.mounts {
                let replacement = Mount {
                    destination: mounts[mount.number].destination.clone(),
                    fstype: "bind".to_owned(),
                    source: mount.source.clone(),
                    options: mount.options.clone(),
                };
                spec.replace(mount.number, &replacement);
            }
            prepared.drives.extend(provided.drives);
        }
        prepared.spec = spec.to_json();
        Ok(prepared)
    }

    /// Which source has what to provide, without sources that have nothing; and a volume that none takes.
    fn assign(&self, volumes: Vec<Volume>) -> (Vec<Assigned<'_>>, Option<Volume>) {
        let mut assigned: Vec<Assigned<'_>> = self
            .sources
            .iter()
            .map(|source| (source.as_ref(), Vec::new()))
            .collect();
        let mut unclaimed = None;
        for volume in volumes {
            match assigned
                .iter_mut()
                .find(|(source, _)| source.takes(&volume))
            {
                Some((_, list)) => list.push(volume),
                None => unclaimed = Some(volume),
            }
        }
        assigned.retain(|(_, volumes)| !volumes.is_empty());
        (assigned, unclaimed)
    }
}

/// A source and what it is to provide.
type Assigned<'a> = (&'a dyn VolumeSource, Vec<Volume>);

/// A container's mounts, ready: attach the drives and give the guest the spec. When this value and every clone
/// of the drives' files are dropped, the copies are removed and the images given up.
#[derive(Debug)]
pub struct Prepared {
    spec: Vec<u8>,
    drives: Vec<Drive>,
}

impl Prepared {
    /// The `config.json` for the guest: mounts of the host are binds of what the drives hold.
    #[must_use]
    pub fn spec(&self) -> &[u8] {
        &self.spec
    }

    /// What to attach and mount before the container is created.
    #[must_use]
    pub fn drives(&self) -> &[Drive] {
        &self.drives
    }
}
