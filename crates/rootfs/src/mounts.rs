//! What a snapshotter's mount means for a VM, and which of them are refused.

mod error;

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use crate::layers::{Layer, Layers};
use crate::several::{self, Part};
pub use error::MountError;

/// One mount as containerd describes it (`containerd.types.Mount`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// The filesystem's type, `bind`, or `overlay`.
    pub fstype: String,
    /// A device, an image file or a directory; a mere name for `overlay`.
    pub source: String,
    /// A path below the rootfs to mount at; empty for the rootfs itself.
    pub target: String,
    /// Options as for mount(8), one per element.
    pub options: Vec<String>,
}

/// A block device or an image file that already holds the rootfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device or file on the host.
    pub source: PathBuf,
    /// Type of the filesystem in it.
    pub fstype: String,
    /// Options to mount it with; what only concerns the host (`loop`) is gone.
    pub options: Vec<String>,
    /// Whether it must not be written to. Such a device can be attached to many VMs.
    pub read_only: bool,
}

/// What to do with a rootfs.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Attach it as it is.
    Device(Device),
    /// Merge its layers to an image.
    Layers {
        layers: Layers,
        /// What the container may write to.
        writable: Writable,
    },
    /// Make an image of all that results from several mounts.
    Several {
        /// In the order in which they are mounted; the first is for the rootfs itself.
        parts: Vec<Part>,
        /// What the container may write to; never a disk with content.
        writable: Writable,
    },
}

/// What a container writes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Writable {
    /// Nothing: the rootfs is read-only.
    No,
    /// A disk that is empty at first.
    EmptyDisk,
    /// A disk with the content of this directory, the snapshot's upper one, at first.
    DiskWith(PathBuf),
}

/// Filesystems that cannot be written to, whatever the options say.
const READ_ONLY_FSTYPES: [&str; 4] = ["erofs", "squashfs", "cramfs", "iso9660"];

/// Options of any filesystem that name something of the host, or change what is
/// mounted, in a way that gets lost when the guest mounts the device.
pub const HOST_ONLY_OPTIONS: [&str; 9] = [
    "offset",
    "sizelimit",
    "device",
    "logdev",
    "rtdev",
    "journal_dev",
    "journal_path",
    "uidmap",
    "gidmap",
];

/// Overlay options without a meaning for an image of the merged view: they tune
/// how the host would mount it, or concern writes, which go to the VM's own disk.
const OVERLAY_IGNORED: [&str; 12] = [
    "rw",
    "index",
    "xino",
    "nfs_export",
    "volatile",
    "fsync",
    "uuid",
    "noatime",
    "relatime",
    "nodiratime",
    "suid",
    "dev",
];

/// Overlay options that change how the layers are read.
const OVERLAY_READING: [&str; 3] = ["userxattr", "metacopy", "redirect_dir"];

/// Decides how the rootfs described by `mounts` gets into a VM.
pub(crate) fn plan(mounts: &[Mount]) -> Result<Plan, MountError> {
    match mounts {
        [] => Err(MountError::None),
        [mount] if several::is_root(&mount.target) => plan_one(mount),
        several => several::plan(several),
    }
}

/// Decides it for one mount, wherever it is for.
pub(crate) fn plan_one(mount: &Mount) -> Result<Plan, MountError> {
    let texts = [&mount.source, &mount.target];
    if let Some(template) = texts
        .into_iter()
        .chain(&mount.options)
        .find(|text| text.contains("{{"))
    {
        return Err(MountError::Template(template.clone()));
    }
    match mount.fstype.as_str() {
        "overlay" => overlay(mount),
        "bind" | "rbind" => bind(mount),
        "" | "none" if has(mount, "bind") || has(mount, "rbind") => bind(mount),
        "" | "none" => Err(MountError::NoType(mount.source.clone())),
        fstype if fstype.contains('/') => Err(MountError::Template(fstype.into())),
        _ => device(mount).map(Plan::Device),
    }
}

fn device(mount: &Mount) -> Result<Device, MountError> {
    let source = PathBuf::from(&mount.source);
    let usable = if source.is_absolute() {
        let kind = fs::metadata(&source)
            .map_err(|error| MountError::Source(source.clone(), error))?
            .file_type();
        kind.is_file() || kind.is_block_device()
    } else {
        // A dataset's name, or none: it is the type that cannot be had.
        false
    };
    if !usable {
        return Err(MountError::NotABlockDevice {
            fstype: mount.fstype.clone(),
            source_path: source,
        });
    }
    let mut options = Vec::new();
    // The kernel takes one after the other, however they are put together.
    for option in mount.options.iter().flat_map(|option| option.split(',')) {
        let (name, value) = split(option);
        if ["bind", "rbind"].contains(&name)
            || HOST_ONLY_OPTIONS.contains(&name)
            || name.starts_with("X-containerd.")
            || (name == "loop" && value.is_some())
        {
            return Err(unsupported(mount, option));
        }
        if name != "loop" {
            options.push(option.to_owned());
        }
    }
    let never_writable = READ_ONLY_FSTYPES.contains(&mount.fstype.as_str());
    if never_writable {
        options.retain(|option| option != "rw");
    }
    Ok(Device {
        source,
        fstype: mount.fstype.clone(),
        read_only: never_writable || options.iter().any(|option| option == "ro"),
        options,
    })
}

fn bind(mount: &Mount) -> Result<Plan, MountError> {
    let source = absolute(&mount.source)?;
    if !fs::metadata(&source)
        .map_err(|error| MountError::Source(source.clone(), error))?
        .is_dir()
    {
        return Err(MountError::BindOfFile(source));
    }
    let mut read_only = false;
    for option in &mount.options {
        match option.as_str() {
            "ro" => read_only = true,
            "bind" | "rbind" | "rw" | "private" | "rprivate" | "slave" | "rslave" | "noatime"
            | "relatime" => {}
            _ => return Err(unsupported(mount, option)),
        }
    }
    // Whoever owns the directory may change it at any time, so that its identity says nothing of its content.
    Ok(Plan::Layers {
        layers: Layers {
            layers: vec![Layer::of(source)?],
            options: Vec::new(),
            immutable: false,
        },
        writable: if read_only {
            Writable::No
        } else {
            Writable::EmptyDisk
        },
    })
}

fn overlay(mount: &Mount) -> Result<Plan, MountError> {
    let mut lower = Vec::new();
    let mut upper = None;
    let mut reading = Vec::new();
    let mut read_only = false;
    for option in &mount.options {
        match split(option) {
            ("lowerdir", Some(list)) => lower.extend(split_lowerdir(mount, list)?),
            ("lowerdir+", Some(dir)) => lower.push(dir.into()),
            ("upperdir", Some(dir)) => upper = Some(absolute(&unescape(dir))?),
            ("workdir", Some(_)) => {}
            ("ro", None) => read_only = true,
            (name, _) if OVERLAY_IGNORED.contains(&name) => {}
            (name, _) if OVERLAY_READING.contains(&name) => reading.push(option.clone()),
            _ => return Err(unsupported(mount, option)),
        }
    }
    if lower.is_empty() {
        return Err(MountError::NoLower);
    }
    let mut layers = Vec::with_capacity(lower.len() + 1);
    for dir in lower {
        layers.push(Layer::of(absolute(&dir)?)?);
    }
    // A view has no upper directory: nothing can be written to it.
    let mut writable = match &upper {
        Some(_) if !read_only => Writable::EmptyDisk,
        _ => Writable::No,
    };
    let mut immutable = true;
    if let Some(upper) = upper
        && has_entries(&upper).map_err(|error| MountError::Source(upper.clone(), error))?
    {
        // The guest mounts the disk without those options: what they mean must be gone by then.
        if writable == Writable::EmptyDisk && reading.is_empty() {
            writable = Writable::DiskWith(upper);
        } else {
            layers.insert(0, Layer::directory(upper)?);
            immutable = false;
        }
    }
    Ok(Plan::Layers {
        layers: Layers {
            layers,
            options: reading,
            immutable,
        },
        writable,
    })
}

/// The snapshot's upper directory, to which what a container wrote can be brought back with
/// [`import_upper`](crate::import_upper); `None` when the rootfs has none, or one that is not in overlayfs'
/// plain format.
pub fn upper_dir(mounts: &[Mount]) -> Option<PathBuf> {
    let [mount] = mounts else {
        return None;
    };
    let reads_otherwise = |option: &String| OVERLAY_READING.contains(&split(option).0);
    if mount.fstype != "overlay" || has(mount, "ro") || mount.options.iter().any(reads_otherwise) {
        return None;
    }
    let upper = mount.options.iter().find_map(|option| match split(option) {
        ("upperdir", Some(dir)) => Some(PathBuf::from(unescape(dir))),
        _ => None,
    });
    upper.filter(|dir| dir.is_absolute())
}

/// Splits as the kernel does: `:` separates, a backslash takes the next character as it is.
fn split_lowerdir(mount: &Mount, list: &str) -> Result<Vec<String>, MountError> {
    let mut dirs = Vec::new();
    let mut dir = String::new();
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => dirs.push(std::mem::take(&mut dir)),
            '\\' => dir.push(chars.next().unwrap_or(c)),
            c => dir.push(c),
        }
    }
    dirs.push(dir);
    if dirs.iter().any(String::is_empty) {
        // "::" introduces layers that only hold file data.
        return Err(unsupported(mount, &format!("lowerdir={list}")));
    }
    Ok(dirs)
}

fn unescape(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        plain.push(if c == '\\' {
            chars.next().unwrap_or(c)
        } else {
            c
        });
    }
    plain
}

fn has_entries(dir: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(dir)?.next().transpose()?.is_some())
}

fn has(mount: &Mount, option: &str) -> bool {
    mount.options.iter().any(|given| given == option)
}

fn split(option: &str) -> (&str, Option<&str>) {
    match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    }
}

fn absolute(path: &str) -> Result<PathBuf, MountError> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(MountError::Relative(path))
    }
}

fn unsupported(mount: &Mount, option: &str) -> MountError {
    MountError::Option {
        fstype: mount.fstype.clone(),
        option: option.into(),
    }
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
