//! Mounting file systems in the guest.

mod info;
mod options;
mod root;

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

pub use info::{Disk, InfoError, disk_mounts, is_listed, mount_points};
pub use options::Options;
pub use root::{RootError, make_writable};

use crate::modules::{self, ModuleError};

/// Why something could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// mount(2) said no.
    #[error(
        "Cannot mount {mount_source} ({fstype}) at {target} with options {options:?}{}",
        remedy(*source)
    )]
    Mount {
        /// Device, or what stands in its place.
        mount_source: String,
        /// Its type.
        fstype: String,
        /// Where to.
        target: PathBuf,
        /// As given.
        options: Vec<String>,
        /// Why.
        #[source]
        source: Errno,
    },
    /// umount(2) said no.
    #[error("Cannot unmount {target}")]
    Unmount {
        /// Where it is mounted.
        target: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The kernel lacks the type and its module cannot be loaded.
    #[error("Cannot mount a file system of type {fstype:?}")]
    Type {
        /// The type.
        fstype: String,
        /// Why.
        #[source]
        source: ModuleError,
    },
}

impl MountError {
    /// The error with `shown` for the target, where that was only a descriptor's name.
    #[must_use]
    pub fn at(self, shown: &Path) -> Self {
        match self {
            Self::Mount {
                mount_source,
                fstype,
                options,
                source,
                ..
            } => Self::Mount {
                mount_source,
                fstype,
                target: shown.to_owned(),
                options,
                source,
            },
            other => other,
        }
    }
}

/// What to do about an error of mount(2) whose text says little.
fn remedy(errno: Errno) -> &'static str {
    match errno {
        // A file system that was not unmounted, on a drive that cannot be written to.
        Errno::EROFS => {
            "; if its journal has to be replayed, mount it writable once, or read-only with norecovery"
        }
        Errno::EINVAL => "; it may hold another file system, a damaged one, or not know an option",
        // Only btrfs says so.
        Errno::EEXIST => "; one of the same id, such as a copy, is mounted in the VM already",
        _ => "",
    }
}

/// Mounts `source` of type `fstype` at the existing directory `target`. Blocks.
///
/// # Errors
/// See [`MountError`].
pub fn mount_at(
    source: &str,
    target: &Path,
    fstype: &str,
    options: &[String],
) -> Result<(), MountError> {
    let parsed = Options::parse(options);
    let bind = parsed.flags.contains(MsFlags::MS_BIND);
    if !bind {
        modules::ensure_filesystem(fstype).map_err(|source| MountError::Type {
            fstype: fstype.to_owned(),
            source,
        })?;
    }
    let attempt = |flags| {
        mount(
            Some(source),
            target,
            Some(fstype),
            flags,
            parsed.data.as_deref(),
        )
        .map_err(|errno| MountError::Mount {
            mount_source: source.to_owned(),
            fstype: fstype.to_owned(),
            target: target.to_owned(),
            options: options.to_vec(),
            source: errno,
        })
    };
    if !bind {
        return attempt(parsed.flags);
    }
    // A bind mount takes its other flags only in a second step.
    let step = MsFlags::MS_BIND | MsFlags::MS_REC;
    attempt(parsed.flags & step)?;
    if (parsed.flags - step).is_empty() {
        return Ok(());
    }
    let result = attempt((parsed.flags - MsFlags::MS_REC) | MsFlags::MS_REMOUNT);
    if result.is_err() {
        // The first step's mount; the error above is what matters.
        let _ = unmount(target);
    }
    result
}

/// Unmounts what is mounted at `target`; fine when nothing is. Never lazily: the caller relies on
/// the file system being gone. Blocks.
///
/// # Errors
/// When it is in use.
pub fn unmount(target: &Path) -> Result<(), MountError> {
    match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        // Not a mount point, or not there at all.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(source) => Err(MountError::Unmount {
            target: target.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_little_comes_with_what_to_do() {
        let text = |source| {
            MountError::Mount {
                mount_source: "/dev/vdb".to_owned(),
                fstype: "ext4".to_owned(),
                target: "/data".into(),
                options: vec!["ro".to_owned()],
                source,
            }
            .to_string()
        };
        let plain = text(Errno::ENOMEM);
        assert!(plain.ends_with("with options [\"ro\"]"), "{plain}");
        assert!(text(Errno::EROFS).contains("norecovery"));
        assert!(text(Errno::EINVAL).contains("another file system"));
        assert!(text(Errno::EEXIST).contains("the same id"));
    }
}
