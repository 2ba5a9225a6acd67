//! Makes room on a read-only root: a layer in memory, put over it when it is first needed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;

use super::info::{self, InfoError};
use super::{MountError, mount_at};

/// Where the old root is for a moment, below the new one.
const OLD_ROOT: &str = ".old-root";

/// Why the root stays read-only.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A directory for the layer.
    #[error("Cannot make {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layer itself.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What is mounted on the root.
    #[error(transparent)]
    Info(#[from] InfoError),
    /// The change from the old root to the new one.
    #[error("Cannot {action} {path}")]
    Switch {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Puts a writable layer, in the directory `state` of a file system in memory, over the root of all
/// processes here. Containers have roots of their own. Blocks.
///
/// Everything that is mounted is bound to its place in the new root before the change, which is
/// one step: nobody misses anything in between.
///
/// # Errors
/// See [`RootError`]; the root is as before then.
pub fn make_writable(state: &Path) -> Result<(), RootError> {
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| state.join(name));
    for dir in [&upper, &work, &merged] {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .map_err(|source| RootError::Directory {
                path: dir.clone(),
                source,
            })?;
    }
    let options = [
        "lowerdir=/".to_owned(),
        format!("upperdir={}", upper.display()),
        format!("workdir={}", work.display()),
    ];
    mount_at("overlay", &merged, "overlay", &options)?;
    let switched = switch(&merged);
    if switched.is_err() {
        // With all that is bound below it. The error above is what matters.
        let _ = umount2(&merged, MntFlags::MNT_DETACH);
    }
    switched
}

fn switch(merged: &Path) -> Result<(), RootError> {
    let failed = |action, path: &Path, source: io::Error| RootError::Switch {
        action,
        path: path.to_owned(),
        source,
    };
    let none = None::<&str>;
    // Else it would be bound into itself with the file system that it is mounted on.
    mount(none, merged, none, MsFlags::MS_UNBINDABLE, none)
        .map_err(|errno| failed("keep from binding", merged, errno.into()))?;
    for point in info::top_mounts()? {
        let below = point.strip_prefix("/").unwrap_or(&point);
        let target = merged.join(below);
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&point), &target, none, flags, none)
            .map_err(|errno| failed("bind to the new root", &point, errno.into()))?;
    }
    let old = merged.join(OLD_ROOT);
    fs::create_dir(&old).map_err(|source| failed("make", &old, source))?;
    pivot_root(merged, &old).map_err(|errno| failed("change the root to", merged, errno.into()))?;
    // From here on there is no way back, and none is needed.
    let old = Path::new("/").join(OLD_ROOT);
    let tidied = mount(none, "/", none, MsFlags::MS_PRIVATE, none)
        .and_then(|()| umount2(&old, MntFlags::MNT_DETACH))
        .map_err(io::Error::from)
        .and_then(|()| fs::remove_dir(&old));
    if let Err(error) = tidied {
        crate::say!("Cannot remove the old root {}: {error}", old.display());
    }
    Ok(())
}
