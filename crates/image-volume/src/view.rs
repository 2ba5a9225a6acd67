//! A view of a snapshot, mounted, and everything it takes to leave nothing of it behind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::mount::{UnmountFlags, unmount};
use tokio::runtime::Handle;

use crate::expiry::expires;
use crate::{Containerd, DeleteError, ImageVolumeError};

/// A view of a snapshot, mounted. Dropping it removes it, too, as far as that can be done without being waited for.
#[derive(Debug)]
pub(crate) struct View {
    parts: Parts,
}

/// What there is to be removed; dropping it only unmounts.
#[derive(Debug)]
struct Parts {
    containerd: Containerd,
    snapshotter: String,
    /// Name of the snapshot and of the lease that keeps it from being collected.
    key: String,
    lease: bool,
    snapshot: bool,
    mount: Option<MountPoint>,
}

impl View {
    /// Makes a view of the snapshot `parent` and mounts it in a new directory in `dir`, whose path it gives. Nothing is
    /// left of it when this fails, or when the future is dropped: the work then goes on, and its result is removed.
    pub(crate) async fn open(
        containerd: &Containerd,
        snapshotter: &str,
        parent: String,
        dir: PathBuf,
        lifetime: Duration,
    ) -> Result<(View, PathBuf), ImageVolumeError> {
        let uuid =
            fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(ImageVolumeError::Unique)?;
        let mut view = View {
            parts: Parts {
                containerd: containerd.clone(),
                snapshotter: snapshotter.to_owned(),
                key: format!("image-volumes-{}", uuid.trim()),
                lease: false,
                snapshot: false,
                mount: None,
            },
        };
        let work = async move {
            match view.parts.make(&parent, dir, lifetime).await {
                Ok(root) => Ok((view, root)),
                Err(error) => {
                    if let Err(left) = view.remove().await {
                        tracing::warn!(error = %left, "what there is of an image's view stays");
                    }
                    Err(error)
                }
            }
        };
        tokio::spawn(work)
            .await
            .map_err(ImageVolumeError::Stopped)?
    }

    /// Unmounts and removes whatever there is. What cannot be removed stays for the next time.
    pub(crate) async fn remove(&mut self) -> Result<(), DeleteError> {
        self.parts.remove().await
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // Neither needs containerd nor waits: done even if nothing else can be.
        self.parts.mount = None;
        if !self.parts.lease && !self.parts.snapshot {
            return;
        }
        let mut parts = self.parts.take();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                if let Err(error) = parts.remove().await {
                    tracing::warn!(%error, view = parts.key, "the view of an image stays until its lease expires");
                }
            })),
            Err(_) => tracing::warn!(
                view = parts.key,
                "the view of an image stays until its lease expires: there is no runtime any more to remove it"
            ),
        }
    }
}

impl Parts {
    async fn make(
        &mut self,
        parent: &str,
        dir: PathBuf,
        lifetime: Duration,
    ) -> Result<PathBuf, ImageVolumeError> {
        let expires = expires(SystemTime::now(), lifetime);
        // Also when no answer comes: it may be there then.
        self.lease = true;
        self.containerd.create_lease(&self.key, expires).await?;
        self.snapshot = true;
        let mounts = self
            .containerd
            .view(&self.snapshotter, &self.key, parent, &self.key)
            .await?;
        let mounted = tokio::task::spawn_blocking(move || MountPoint::new(&dir, &mounts)).await;
        let mounted = mounted.map_err(ImageVolumeError::Stopped)??;
        Ok(self.mount.insert(mounted).path.clone())
    }

    async fn remove(&mut self) -> Result<(), DeleteError> {
        let mut failures = Vec::new();
        if let Some(mut mount) = self.mount.take()
            && let Err(error) = mount.remove()
        {
            failures.push(ImageVolumeError::Unmount(mount.path.clone(), error));
            self.mount = Some(mount);
        }
        if self.snapshot {
            let removed = self
                .containerd
                .remove_snapshot(&self.snapshotter, &self.key)
                .await;
            match removed {
                Ok(()) => self.snapshot = false,
                Err(error) => failures.push(error),
            }
        }
        if self.lease {
            // A view that was still being made when its maker was dropped goes with its lease.
            match self.containerd.delete_lease(&self.key).await {
                Ok(()) => self.lease = false,
                Err(error) => failures.push(error),
            }
        }
        DeleteError::of(failures)
    }

    /// All of it, leaving nothing to be removed.
    fn take(&mut self) -> Parts {
        Parts {
            containerd: self.containerd.clone(),
            snapshotter: std::mem::take(&mut self.snapshotter),
            key: std::mem::take(&mut self.key),
            mount: self.mount.take(),
            snapshot: std::mem::take(&mut self.snapshot),
            lease: std::mem::take(&mut self.lease),
        }
    }
}

/// A directory with a snapshot's content, read-only; unmounted and removed with this value.
#[derive(Debug)]
struct MountPoint {
    path: PathBuf,
    mounted: bool,
    exists: bool,
}

impl MountPoint {
    /// Blocks.
    fn new(dir: &Path, mounts: &[fc_rootfs::Mount]) -> Result<MountPoint, ImageVolumeError> {
        let failed = |error| ImageVolumeError::Directory(dir.to_owned(), error);
        // What is mounted there later is looked up by its path.
        let dir = fs::canonicalize(dir).map_err(failed)?;
        let point = tempfile::Builder::new()
            .prefix("image.")
            .tempdir_in(&dir)
            .map_err(failed)?;
        fc_rootfs::mount_view(mounts, point.path()).map_err(ImageVolumeError::Mount)?;
        Ok(MountPoint {
            path: point.keep(),
            mounted: true,
            exists: true,
        })
    }

    /// Files in it that are open stay so. Can be tried again.
    fn remove(&mut self) -> io::Result<()> {
        if self.mounted {
            unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
            self.mounted = false;
        }
        if self.exists {
            fs::remove_dir(&self.path)?;
            self.exists = false;
        }
        Ok(())
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, path = %self.path.display(), "the content of an image stays mounted");
        }
    }
}
