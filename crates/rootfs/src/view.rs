//! A snapshot's content at a directory of the host, for programs of the host.

use std::io;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::MountError;
use crate::merge::{self, MergeError};
use crate::mounts::Mount;
use crate::several;

/// Mounts what a container with these `mounts` as rootfs would see at the existing directory `at` (an absolute
/// path), read-only, whatever the mounts' options say; `umount(2)` undoes it. Blocks, and needs root.
///
/// # Errors
/// When the mounts are refused as a container's would be, or one of them fails; nothing is mounted then.
pub fn mount_view(mounts: &[Mount], at: &Path) -> Result<(), ViewError> {
    if mounts.is_empty() {
        return Err(MountError::None.into());
    }
    let (parts, _) = several::parts(mounts)?;
    // Put together where nobody sees it half done, and taken from there in one piece.
    let tree = merge::with_rootfs(&parts, at, |rootfs| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        open_tree(CWD, rootfs, flags).map_err(|error| MergeError::Read(error.into()))
    })?;
    move_mount(&tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| ViewError::Place(error.into()))
}

/// Why a snapshot cannot be mounted on the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// What the snapshotter says cannot be used.
    #[error("The snapshot's mounts cannot be used")]
    Mounts(#[from] MountError),
    /// The layers cannot be mounted or merged.
    #[error("The snapshot cannot be mounted")]
    Merge(#[from] MergeError),
    /// The directory is none, or mounting is not permitted.
    #[error("The snapshot cannot be mounted where it was asked for")]
    Place(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::fs;

    use fc_test_host::{has_root, in_namespace};
    use rustix::mount::{UnmountFlags, unmount};

    use super::*;

    #[test]
    fn an_overlay_appears_at_once_and_read_only() {
        if !has_root("mounting") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let [upper, lower, at] = ["upper", "lower", "at"].map(|name| dir.path().join(name));
        for dir in [&upper, &lower, &at] {
            fs::create_dir(dir).unwrap();
        }
        fs::write(upper.join("a"), "upper").unwrap();
        fs::write(lower.join("a"), "lower").unwrap();
        fs::write(lower.join("b"), "lower").unwrap();
        let overlay = Mount {
            fstype: "overlay".into(),
            source: "overlay".into(),
            options: vec![format!("lowerdir={}:{}", upper.display(), lower.display())],
            ..Mount::default()
        };
        in_namespace(|| {
            assert!(mount_view(&[], &at).is_err());
            let nowhere = mount_view(std::slice::from_ref(&overlay), &dir.path().join("no"));
            assert!(nowhere.is_err());
            mount_view(&[overlay], &at).unwrap();
            assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "upper");
            assert_eq!(fs::read_to_string(at.join("b")).unwrap(), "lower");
            let error = fs::write(at.join("c"), "").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            // A process that another test is just starting may have a file of it open.
            unmount(&at, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).unwrap();
            assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
        });
    }
}
