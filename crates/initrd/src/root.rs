//! Waits for the root device and mounts the image on it at [`NEW_ROOT`].

use std::fmt::Write as _;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount as mount_fs};

use crate::cmdline::Cmdline;
use crate::uevent::Uevents;

/// Where the root image is mounted before it becomes `/`.
pub(crate) const NEW_ROOT: &str = "/newroot";

/// The device is there when its driver is loaded; this only bounds the wait for one that never comes.
const DEVICE_BOUND: Duration = Duration::from_secs(30);

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    #[error("Cannot wait for {device}")]
    Wait {
        device: PathBuf,
        #[source]
        source: Errno,
    },
    #[error(
        "Root device {device} did not appear within {} s; block devices present: {present}",
        DEVICE_BOUND.as_secs()
    )]
    NoDevice { device: PathBuf, present: String },
    #[error("Cannot make {NEW_ROOT}")]
    MountPoint(#[source] std::io::Error),
    #[error(
        "Cannot mount root device {device} (is the root image intact?); tried {tried}; block devices present: {present}"
    )]
    Mount {
        device: PathBuf,
        tried: String,
        present: String,
    },
}

/// Mounts the root image that `cmdline` names at [`NEW_ROOT`].
pub(crate) fn mount(cmdline: &Cmdline, uevents: &Uevents) -> Result<(), RootError> {
    let device = &cmdline.root;
    wait_for(device, uevents)?;
    std::fs::create_dir_all(NEW_ROOT).map_err(RootError::MountPoint)?;
    let mut tried = String::new();
    for fstype in &cmdline.fstypes {
        match mount_as(cmdline, fstype) {
            Ok(()) => return Ok(()),
            Err(errno) => {
                let separator = if tried.is_empty() { "" } else { ", " };
                // Writing to a String cannot fail.
                let _ = write!(tried, "{separator}{fstype} ({})", explain(errno));
            }
        }
    }
    Err(RootError::Mount {
        device: device.clone(),
        tried,
        present: block_devices(),
    })
}

fn mount_as(cmdline: &Cmdline, fstype: &str) -> nix::Result<()> {
    let data = (!cmdline.rootflags.is_empty()).then_some(cmdline.rootflags.as_str());
    let attempt = |flags| mount_fs(Some(&cmdline.root), NEW_ROOT, Some(fstype), flags, data);
    if !cmdline.writable {
        return attempt(MsFlags::MS_RDONLY);
    }
    match attempt(MsFlags::empty()) {
        // A read-only device or file system, whatever the command line says.
        Err(Errno::EACCES | Errno::EROFS) => attempt(MsFlags::MS_RDONLY),
        result => result,
    }
}

fn wait_for(device: &Path, uevents: &Uevents) -> Result<(), RootError> {
    let deadline = Instant::now() + DEVICE_BOUND;
    while !is_block_device(device) {
        match uevents.wait(deadline) {
            Ok(true) => {}
            Ok(false) => {
                return Err(RootError::NoDevice {
                    device: device.to_owned(),
                    present: block_devices(),
                });
            }
            Err(source) => {
                return Err(RootError::Wait {
                    device: device.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(())
}

fn is_block_device(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.file_type().is_block_device())
}

/// Names and sizes of all block devices, for messages.
fn block_devices() -> String {
    let mut devices: Vec<String> = std::fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let sectors: u64 = std::fs::read_to_string(entry.path().join("size"))
                .ok()
                .and_then(|size| size.trim().parse().ok())
                .unwrap_or(0);
            format!("{} ({} KiB)", entry.file_name().display(), sectors / 2)
        })
        .collect();
    devices.sort();
    if devices.is_empty() {
        return "none".to_owned();
    }
    devices.join(", ")
}

/// What an errno of mount(2) means here.
fn explain(errno: Errno) -> &'static str {
    match errno {
        Errno::ENODEV => "the kernel does not know this type",
        Errno::EINVAL => "not a valid image of this type",
        Errno::EUCLEAN => "the image is damaged",
        _ => errno.desc(),
    }
}
