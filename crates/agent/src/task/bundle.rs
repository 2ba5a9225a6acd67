//! A container's directory in the guest: `config.json` and the mount point `rootfs`.
//!
//! The host may have mounted drives below it before Create and unmounts them after Delete, so
//! nothing here ever removes a directory with what is in it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fc_errors::chain;
use fc_proto::containerd::types::mount::Mount;

use super::error::TaskError;
use crate::mount;

/// Prefix of the type of mounts that only the guest can make, added by snapshotters in the VM.
const GUEST_ONLY: &str = "vm:";

/// The directory and what we mounted in it.
#[derive(Debug)]
pub(super) struct Bundle {
    dir: PathBuf,
    mounts: usize,
}

impl Bundle {
    /// The directory `dir`, made if need be, accessible to root only.
    pub(super) fn make(dir: PathBuf) -> Result<Self, TaskError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|source| TaskError::File {
                action: "make bundle",
                path: dir.clone(),
                source,
            })?;
        Ok(Self { dir, mounts: 0 })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Mounts the root file system, each mount over the last. Without mounts, it must be there
    /// already. Blocks.
    pub(super) fn mount_rootfs(&mut self, mounts: &[Mount]) -> Result<(), TaskError> {
        let rootfs = self.rootfs();
        if mounts.is_empty() {
            return if rootfs.is_dir() {
                Ok(())
            } else {
                Err(TaskError::NoRootfs(rootfs))
            };
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&rootfs)
            .map_err(|source| TaskError::File {
                action: "make mount point",
                path: rootfs.clone(),
                source,
            })?;
        for mount in mounts {
            if !mount.target.is_empty() {
                return Err(TaskError::Unsupported(
                    "Mounts of the rootfs into a subdirectory are not supported",
                ));
            }
            let fstype = mount.type_.strip_prefix(GUEST_ONLY).unwrap_or(&mount.type_);
            mount::mount_at(&mount.source, &rootfs, fstype, &mount.options)?;
            self.mounts += 1;
        }
        Ok(())
    }

    /// Whether the host could not look into the root file system, so that names in the spec are
    /// still to be resolved.
    pub(super) fn is_guest_only(mounts: &[Mount]) -> bool {
        mounts
            .iter()
            .any(|mount| mount.type_.starts_with(GUEST_ONLY))
    }

    /// Writes `config.json`.
    pub(super) fn write_spec(&self, json: &[u8]) -> Result<(), TaskError> {
        let path = self.dir.join("config.json");
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o700)
            .open(&path)
            .and_then(|mut file| file.write_all(json))
            .map_err(|source| TaskError::File {
                action: "write",
                path,
                source,
            })
    }

    /// Unmounts and removes what is ours; returns all that failed. Can be repeated. Blocks.
    pub(super) fn remove(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let rootfs = self.rootfs();
        for _ in 0..self.mounts {
            if let Err(error) = mount::unmount(&rootfs) {
                failures.push(chain(&error));
            }
        }
        let spec = self.dir.join("config.json");
        let results = [
            (&spec, fs::remove_file(&spec)),
            (&rootfs, fs::remove_dir(&rootfs)),
            (&self.dir, fs::remove_dir(&self.dir)),
        ];
        for (path, result) in results {
            if let Err(error) = result
                && !is_kept(&error)
            {
                failures.push(format!("Cannot remove {}: {error}", path.display()));
            }
        }
        failures
    }
}

/// Not there, or still the place of a drive, with which it goes.
fn is_kept(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_is_removed() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("c");
        fs::create_dir_all(dir.join("disk")).unwrap();
        fs::write(dir.join("disk/data"), "precious").unwrap();
        let bundle = Bundle::make(dir.clone()).unwrap();
        bundle.write_spec(b"{}").unwrap();
        fs::create_dir(bundle.rootfs()).unwrap();
        assert!(bundle.remove().is_empty());
        assert!(dir.join("disk/data").exists());
        assert!(!dir.join("config.json").exists() && !bundle.rootfs().exists());
        assert!(bundle.remove().is_empty());
    }

    #[test]
    fn a_bundle_without_rootfs_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let mut bundle = Bundle::make(base.path().join("c")).unwrap();
        assert!(matches!(
            bundle.mount_rootfs(&[]),
            Err(TaskError::NoRootfs(_))
        ));
        assert!(bundle.remove().is_empty());
        assert!(!base.path().join("c").exists());
    }
}
