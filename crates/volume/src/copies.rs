//! Small files and directories of the host, copied when the container is created.
//!
//! All read-only ones of a container share one EROFS image, all writable ones one ext4 image. In either,
//! the n-th volume is the file or directory called `n`.

use std::path::{Path, PathBuf};

use fc_host_file::HostFile;
use fc_rootfs::mkfs::{self, MkfsError};
use fc_rootfs::{DISK_FSTYPE, IMAGE_FSTYPE};

use crate::budget::Budget;
use crate::staging::{MountPoint, Staging};
use crate::tree::Tree;
use crate::{
    Drive, GuestMount, Provided, Refusal, Request, Slots, Volume, VolumeError, VolumeKind,
    VolumeSource,
};

const MIB: u64 = 1 << 20;
/// For the staging filesystem's own root directory and extended attributes.
const SLACK: u64 = MIB;
/// For an ext4 filesystem's own tables.
const EXT4_OVERHEAD: u64 = 16 * MIB;
/// The image does not outlive its container: nothing needs to be recovered from it.
const EXT4_FEATURES: &str = "^has_journal,^resize_inode";

/// The host's part of the settings.
#[derive(Debug, Clone)]
pub struct CopySettings {
    /// Most bytes copied for one container, each file, directory and link counted in blocks of 4 KiB.
    pub limit: u64,
    /// The program `mkfs.erofs` (erofs-utils 1.5 or newer): a path, or a name to look up in PATH.
    pub mkfs_erofs: PathBuf,
    /// The program `mkfs.ext4` (e2fsprogs 1.47 or newer): a path, or a name to look up in PATH.
    pub mkfs_ext4: PathBuf,
}

impl CopySettings {
    /// A limit in bytes, with the programs found in PATH.
    #[must_use]
    pub fn new(limit: u64) -> CopySettings {
        CopySettings {
            limit,
            mkfs_erofs: "mkfs.erofs".into(),
            mkfs_ext4: "mkfs.ext4".into(),
        }
    }
}

/// The [`VolumeSource`] that copies.
///
/// Read-only copies are mounted at `volumes` in the container's directory in the guest, writable ones, which
/// an annotation must have accepted, at `copies`.
#[derive(Debug)]
pub struct Copies {
    settings: CopySettings,
}

impl Copies {
    /// Copies within the limits of `settings`.
    #[must_use]
    pub fn new(settings: CopySettings) -> Copies {
        Copies { settings }
    }
}

impl VolumeSource for Copies {
    fn takes(&self, volume: &Volume) -> bool {
        matches!(volume.kind, VolumeKind::Bind { .. })
    }

    fn slots(&self, volumes: &[Volume]) -> Slots {
        let writable = |volume: &Volume| !volume.read_only && volume.copy_accepted;
        Slots {
            read_only: u32::from(volumes.iter().any(|volume| volume.read_only)),
            writable: u32::from(volumes.iter().any(writable)),
        }
    }

    fn provide(&self, volumes: &[Volume], request: &Request) -> Result<Provided, VolumeError> {
        if let Some(volume) = volumes.iter().find(|v| !v.read_only && !v.copy_accepted) {
            return Err(VolumeError::Refused {
                destination: volume.destination.clone(),
                why: Refusal::Writable(volume.source.clone()),
            });
        }
        let mut budget = Budget::new(self.settings.limit);
        let mut provided = Provided::default();
        let read_only = Kind {
            read_only: true,
            file: &request.files.copies,
            destination: format!("{}/volumes", request.guest_dir),
        };
        let writable = Kind {
            read_only: false,
            file: &request.files.writable_copies,
            destination: format!("{}/copies", request.guest_dir),
        };
        for kind in [read_only, writable] {
            let chosen = volumes
                .iter()
                .filter(|volume| volume.read_only == kind.read_only);
            let chosen: Vec<_> = chosen.collect();
            if chosen.is_empty() {
                continue;
            }
            let staging =
                Staging::new(budget.limit().saturating_add(SLACK)).map_err(VolumeError::Staging)?;
            let used = budget.used();
            for (name, volume) in chosen.iter().enumerate() {
                let recursive = volume.kind == VolumeKind::Bind { recursive: true };
                let tree = Tree::open(&volume.destination, &volume.source, recursive)?;
                tree.copy(&staging.path().join(name.to_string()), &mut budget)?;
                provided.mounts.push(GuestMount {
                    number: volume.number,
                    source: format!("{}/{name}", kind.destination),
                    options: bind_options(volume),
                });
            }
            let size =
                (2 * (budget.used() - used) + EXT4_OVERHEAD).max(request.files.writable_size);
            let file = self.make_image(&kind, &staging, size);
            let file = file.map_err(|error| on_the_host(error, &chosen))?;
            provided.drives.push(Drive {
                file,
                destination: kind.destination,
                fstype: if kind.read_only {
                    IMAGE_FSTYPE
                } else {
                    DISK_FSTYPE
                }
                .to_owned(),
                options: vec!["nodev".to_owned()],
                read_only: kind.read_only,
            });
        }
        Ok(provided)
    }
}

/// One of the two images.
struct Kind<'a> {
    read_only: bool,
    file: &'a Path,
    destination: String,
}

impl Copies {
    fn make_image(
        &self,
        kind: &Kind<'_>,
        staging: &Staging,
        size: u64,
    ) -> Result<HostFile, VolumeError> {
        let failed = |error| VolumeError::File {
            action: "make",
            path: kind.file.to_owned(),
            error,
        };
        // Only root can read it, since secrets may be in it.
        let file = HostFile::create(kind.file)?;
        let mut name = kind.file.as_os_str().to_owned();
        name.push(".content");
        let content = MountPoint::new(name.into()).map_err(failed)?;
        let mut command = if kind.read_only {
            let program = mkfs::find(&self.settings.mkfs_erofs, "erofs-utils")?;
            mkfs::erofs(&program, false, kind.file, content.path())
        } else {
            file.file()
                .set_len(size.next_multiple_of(MIB))
                .map_err(failed)?;
            let program = mkfs::find(&self.settings.mkfs_ext4, "e2fsprogs")?;
            mkfs::ext4(&program, EXT4_FEATURES, kind.file, content.path())
        };
        staging
            .mount_for(&mut command, content.path())
            .map_err(VolumeError::Staging)?;
        if kind.read_only {
            mkfs::run_erofs(&mut command, &staging.path())?;
        } else {
            mkfs::run(&mut command)?;
        }
        Ok(file)
    }
}

/// The error, with the path on the host instead of one among the copies of `volumes`.
fn on_the_host(error: VolumeError, volumes: &[&Volume]) -> VolumeError {
    let VolumeError::Mkfs(MkfsError::LongName(copy)) = error else {
        return error;
    };
    let mut parts = copy.components();
    let number = parts.next().and_then(|name| name.as_os_str().to_str());
    let number = number.and_then(|name| name.parse::<usize>().ok());
    let path = match number.and_then(|number| volumes.get(number)) {
        // Joined with nothing, a file would end in a slash.
        Some(volume) if parts.as_path().as_os_str().is_empty() => volume.source.clone(),
        Some(volume) => volume.source.join(parts.as_path()),
        None => copy,
    };
    VolumeError::Mkfs(MkfsError::LongName(path))
}

/// The options of the bind mount in the guest: those of the host's, which say `bind` or `rbind`.
fn bind_options(volume: &Volume) -> Vec<String> {
    let mut options = volume.options.clone();
    if !options.iter().any(|o| o == "bind" || o == "rbind") {
        options.insert(0, "bind".to_owned());
    }
    options
}
