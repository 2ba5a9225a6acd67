//! Filesystems in image files and on block devices of the host, attached as they are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use fc_host_file::{Access, HostFile};
use fc_rootfs::HOST_ONLY_OPTIONS;

use crate::{
    Drive, GuestMount, Provided, Refusal, Request, Slots, Volume, VolumeError, VolumeKind,
    VolumeSource,
};

/// Options of a mount as such, which the container's bind mount must have too.
const MOUNT_OPTIONS: [&str; 12] = [
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "atime",
    "relatime",
    "norelatime",
    "nodiratime",
    "diratime",
];
/// Options of the bind mount only.
const PROPAGATION: [&str; 6] = [
    "private",
    "rprivate",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// Where a filesystem type's magic number is (`linux/magic.h` and the filesystems' headers).
const MAGIC: [(&str, u64, &[u8]); 5] = [
    ("ext4", 1024 + 56, &[0x53, 0xef]),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x10000 + 64, b"_BHRfS_M"),
    ("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    ("squashfs", 0, b"hsqs"),
];

/// The [`VolumeSource`] that attaches images.
///
/// The n-th is mounted at `volume-<n>` in the container's directory in the guest. A writable image has one
/// user at a time, on the whole host, as [`HostFile`] has it.
#[derive(Debug)]
pub struct Images;

impl VolumeSource for Images {
    fn takes(&self, volume: &Volume) -> bool {
        matches!(volume.kind, VolumeKind::Image { .. })
    }

    fn slots(&self, volumes: &[Volume]) -> Slots {
        let count = |read_only| {
            let chosen = volumes
                .iter()
                .filter(|volume| volume.read_only == read_only);
            u32::try_from(chosen.count()).unwrap_or(u32::MAX)
        };
        Slots {
            read_only: count(true),
            writable: count(false),
        }
    }

    fn provide(&self, volumes: &[Volume], request: &Request) -> Result<Provided, VolumeError> {
        let mut provided = Provided::default();
        for (number, volume) in volumes.iter().enumerate() {
            let VolumeKind::Image { fstype } = &volume.kind else {
                continue;
            };
            let (drive_options, bind_options) = split_options(volume)?;
            let file = open(volume, fstype)?;
            let destination = format!("{}/volume-{number}", request.guest_dir);
            provided.mounts.push(GuestMount {
                number: volume.number,
                source: destination.clone(),
                options: bind_options,
            });
            provided.drives.push(Drive {
                file,
                destination,
                fstype: fstype.clone(),
                options: drive_options,
                read_only: volume.read_only,
            });
        }
        Ok(provided)
    }
}

/// Options for the guest's mount of the drive, and for the container's bind of that.
fn split_options(volume: &Volume) -> Result<(Vec<String>, Vec<String>), VolumeError> {
    let mut drive = Vec::new();
    let access = if volume.read_only { "ro" } else { "rw" };
    let mut bind = vec!["bind".to_owned(), access.to_owned()];
    for option in &volume.options {
        let name = option.split('=').next().unwrap_or_default();
        match option.as_str() {
            "ro" | "rw" | "rro" | "loop" | "defaults" => {}
            _ if HOST_ONLY_OPTIONS.contains(&name)
                || matches!(name, "loop" | "shared" | "rshared") =>
            {
                return Err(refused(volume, Refusal::Option(option.clone())));
            }
            _ if PROPAGATION.contains(&name) => bind.push(option.clone()),
            _ => {
                if MOUNT_OPTIONS.contains(&name) {
                    bind.push(option.clone());
                }
                drive.push(option.clone());
            }
        }
    }
    Ok((drive, bind))
}

/// Opens and locks the image; checks that it is what the mount says.
fn open(volume: &Volume, fstype: &str) -> Result<HostFile, VolumeError> {
    let access = if volume.read_only {
        Access::Read
    } else {
        Access::Write
    };
    let image = HostFile::open(&volume.source, access).map_err(|source| VolumeError::Image {
        destination: volume.destination.clone(),
        source,
    })?;
    let holds = holds(image.file(), fstype).map_err(|error| VolumeError::Source {
        destination: volume.destination.clone(),
        action: "read",
        path: volume.source.clone(),
        error,
    })?;
    if holds {
        return Ok(image);
    }
    Err(refused(
        volume,
        Refusal::WrongFilesystem {
            path: volume.source.clone(),
            fstype: fstype.to_owned(),
        },
    ))
}

fn holds(image: &File, fstype: &str) -> io::Result<bool> {
    let Some((_, offset, magic)) = MAGIC.iter().find(|(name, _, _)| *name == fstype) else {
        return Ok(true);
    };
    let mut found = vec![0; magic.len()];
    match image.read_exact_at(&mut found, *offset) {
        Ok(()) => Ok(found == *magic),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn refused(volume: &Volume, why: Refusal) -> VolumeError {
    VolumeError::Refused {
        destination: volume.destination.clone(),
        why,
    }
}
