//! Filesystems in image files and on block devices of the host, attached as they are.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::time::{Duration, Instant};

use fc_rootfs::HOST_ONLY_OPTIONS;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

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

/// How long a lock that was given up can seem to be held: a process that this one is just starting has a copy of
/// its descriptor until its program runs, which nothing tells.
const COPY_BOUND: Duration = Duration::from_millis(200);
/// How often it is looked for.
const COPY_PAUSE: Duration = Duration::from_millis(2);

/// The [`VolumeSource`] that attaches images.
///
/// The n-th is mounted at `volume-<n>` in the container's directory in the guest. A writable image has one
/// user at a time, on the whole host: it is locked (flock) for as long as the volume is held.
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
            let lock = open(volume, fstype)?;
            let destination = format!("{}/volume-{number}", request.guest_dir);
            provided.mounts.push(GuestMount {
                number: volume.number,
                source: destination.clone(),
                options: bind_options,
            });
            provided.drives.push(Drive {
                host_path: volume.source.clone(),
                destination,
                fstype: fstype.clone(),
                options: drive_options,
                read_only: volume.read_only,
            });
            provided.held.push(Box::new(lock));
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
fn open(volume: &Volume, fstype: &str) -> Result<File, VolumeError> {
    let failed = |action| {
        move |error| VolumeError::Source {
            destination: volume.destination.clone(),
            action,
            path: volume.source.clone(),
            error,
        }
    };
    // Looked at first, because opening a FIFO waits and opening other devices may do anything.
    let kind = std::fs::metadata(&volume.source)
        .map_err(failed("look at"))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(refused(volume, Refusal::NotAnImage(volume.source.clone())));
    }
    let mut options = File::options();
    let image = options
        .read(true)
        .write(!volume.read_only)
        .open(&volume.source);
    let image = image.map_err(failed("open"))?;
    let lock = if volume.read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    if !take(&image, lock).map_err(failed("lock"))? {
        return Err(refused(volume, Refusal::InUse(volume.source.clone())));
    }
    if holds(&image, fstype).map_err(failed("read"))? {
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

/// Takes a lock; answers whether it was free.
fn take(image: &File, lock: FlockOperation) -> io::Result<bool> {
    let begin = Instant::now();
    loop {
        match flock(image, lock) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if begin.elapsed() < COPY_BOUND => {
                std::thread::sleep(COPY_PAUSE)
            }
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
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
