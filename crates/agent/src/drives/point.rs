//! Mount points: where they may be, how they are found, made and removed.
//!
//! Containers run while drives are mounted, and may own some directory on the way. So a mount point
//! is found one component after another, each relative to a descriptor of the last; what the
//! descriptor is then of is asked of the kernel, and it is the descriptor that is mounted on.
//! Nothing that is renamed or linked meanwhile leads anywhere else.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, fstat, mkdirat, stat};

use super::DriveError;
use crate::server::STATE_DIR;

/// Trees that are the kernel's, and those with the agent's and the OCI runtime's files.
const TREES: [&str; 11] = [
    "/proc", "/sys", "/dev", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
    STATE_DIR,
];
/// Directories that hold what others need, but have room for mount points below them.
const DIRECTORIES: [&str; 3] = ["/", "/etc", "/run"];

const FLAGS: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// A directory to mount on.
#[derive(Debug)]
pub(super) struct MountPoint {
    dir: OwnedFd,
    path: PathBuf,
}

impl MountPoint {
    /// Finds the directory `path`, following links. What is missing is made, for root only.
    ///
    /// # Errors
    /// When it belongs to the system, or cannot be made; [`is_read_only_root`] tells one reason.
    pub(super) fn make(path: &Path) -> Result<Self, DriveError> {
        let failed = |errno: Errno| DriveError::MountPoint {
            path: path.to_owned(),
            source: errno.into(),
        };
        let mut dir = open("/", FLAGS, Mode::empty()).map_err(failed)?;
        for component in path.components() {
            dir = match component {
                Component::Normal(name) => enter(&dir, name, path)?,
                Component::ParentDir => openat(&dir, "..", FLAGS, Mode::empty()).map_err(failed)?,
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            };
        }
        let place = location(&dir).map_err(failed)?;
        if is_system(&place) || DIRECTORIES.iter().any(|own| place == Path::new(own)) {
            return Err(refuse(path, place));
        }
        Ok(Self { dir, path: place })
    }

    /// A name of the directory that leads nowhere else, while `self` lives.
    pub(super) fn handle(&self) -> PathBuf {
        handle(&self.dir)
    }

    /// Its name, with all links resolved.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn enter(dir: &OwnedFd, name: &OsStr, whole: &Path) -> Result<OwnedFd, DriveError> {
    let failed = |errno: Errno| DriveError::MountPoint {
        path: whole.to_owned(),
        source: errno.into(),
    };
    let how = OpenHow::new()
        .flags(FLAGS)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let missing = match openat2(dir, name, how) {
        Err(Errno::ENOENT) => location(dir).map_err(failed)?,
        result => return result.map_err(failed),
    };
    if is_system(&missing) {
        return Err(refuse(whole, missing.join(name)));
    }
    match mkdirat(dir, name, Mode::S_IRWXU) {
        // Somebody was faster, or it is a link to nowhere; the next line tells.
        Ok(()) | Err(Errno::EEXIST) => openat2(dir, name, how).map_err(failed),
        Err(Errno::EROFS) if is_root(dir) => Err(DriveError::ReadOnlyRoot(whole.to_owned())),
        Err(errno) => Err(failed(errno)),
    }
}

fn refuse(path: &Path, place: PathBuf) -> DriveError {
    DriveError::Destination {
        path: path.to_owned(),
        place,
    }
}

fn handle(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

fn location(dir: &OwnedFd) -> nix::Result<PathBuf> {
    nix::fcntl::readlinkat(AT_FDCWD, &handle(dir)).map(PathBuf::from)
}

/// Whether the directory is on the root file system.
fn is_root(dir: &OwnedFd) -> bool {
    matches!((fstat(dir), stat("/")), (Ok(here), Ok(root)) if here.st_dev == root.st_dev)
}

fn is_system(path: &Path) -> bool {
    TREES.iter().any(|tree| path.starts_with(tree))
}

/// Removes the directory `path` and its parents below `base`, as far as they are empty.
pub(super) fn remove_empty(path: &Path, base: &Path) {
    let ours = path
        .ancestors()
        .take_while(|p| *p != base && p.starts_with(base));
    for dir in ours {
        // Not empty, or another mount point: then it is still needed.
        if fs::remove_dir(dir).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn place(path: &Path) -> Option<PathBuf> {
        match MountPoint::make(path) {
            Err(DriveError::Destination { place, .. }) => Some(place),
            _ => None,
        }
    }

    #[test]
    fn what_is_missing_is_made_for_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        symlink("b", base.join("link")).unwrap();
        fs::create_dir(base.join("b")).unwrap();
        let point = MountPoint::make(&base.join("a/../link/./c")).unwrap();
        assert_eq!(point.path(), base.join("b/c"));
        let mode = fs::metadata(base.join("b/c")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(fs::canonicalize(point.handle()).unwrap() == base.join("b/c"));
        // As it is, if it is there.
        MountPoint::make(&base.join("b/c")).unwrap();
    }

    #[test]
    fn the_system_is_refused_also_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        symlink("/proc", base.join("p")).unwrap();
        symlink("../../../../../..", base.join("up")).unwrap();
        for path in [
            "/",
            "/proc",
            "/proc/x",
            "/dev/shm",
            "/usr/../sys/kernel",
            "/etc/",
            "/usr/x",
            "/run",
            "//",
        ] {
            assert!(place(Path::new(path)).is_some(), "{path}");
        }
        assert_eq!(place(&base.join("p/tty")).unwrap(), Path::new("/proc/tty"));
        assert_eq!(place(&base.join("p/new")).unwrap(), Path::new("/proc/new"));
        assert_eq!(place(&base.join("up")).unwrap(), Path::new("/"));
        assert_eq!(place(&base.join("up/run/.")).unwrap(), Path::new("/run"));
        assert!(!is_system(Path::new("/devices")) && !is_system(Path::new("/container")));
        assert!(!is_system(Path::new("/run/user")) && is_system(&Path::new(STATE_DIR).join("x")));
    }

    #[test]
    fn links_to_nowhere_and_files_are_no_mount_points() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        symlink("/nowhere/at/all", base.join("dangling")).unwrap();
        fs::write(base.join("file"), "").unwrap();
        for name in ["dangling", "dangling/x", "file", "file/x"] {
            let error = MountPoint::make(&base.join(name)).unwrap_err();
            assert!(
                matches!(error, DriveError::MountPoint { .. }),
                "{name}: {error}"
            );
        }
        assert!(!Path::new("/nowhere").exists());
        let magic = Path::new("/proc/self/cwd/new");
        assert!(MountPoint::make(magic).is_err());
    }

    /// Whoever swaps directories and links while the point is looked for gets no other mounted on.
    #[test]
    fn a_link_put_in_place_meanwhile_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let (place, other) = (base.join("x"), base.join("other"));
        fs::create_dir_all(place.join("sub")).unwrap();
        symlink("/sys", &other).unwrap();
        let swaps = Arc::new(AtomicBool::new(true));
        let goes_on = Arc::clone(&swaps);
        let swapper = std::thread::spawn(move || {
            while goes_on.load(Ordering::Relaxed) {
                let swap = RenameFlags::RENAME_EXCHANGE;
                renameat2(AT_FDCWD, &place, AT_FDCWD, &other, swap).unwrap();
            }
        });
        // Often enough to meet a swap at every step of the way, however seldom the two run at once.
        let (mut found, mut refused) = (0, 0);
        while found < 500 || refused < 500 {
            assert!(!swapper.is_finished());
            match MountPoint::make(&base.join("x/sub")) {
                Ok(point) => {
                    let real = fs::read_link(point.handle()).unwrap();
                    assert!(real.starts_with(&base), "{}", real.display());
                    found += 1;
                }
                Err(DriveError::Destination { .. } | DriveError::MountPoint { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        swaps.store(false, Ordering::Relaxed);
        swapper.join().unwrap();
    }

    #[test]
    fn empty_directories_are_removed_up_to_the_base() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        fs::create_dir_all(base.join("c/rootfs")).unwrap();
        fs::create_dir_all(base.join("d/rootfs")).unwrap();
        fs::write(base.join("d/config.json"), "").unwrap();
        remove_empty(&base.join("c/rootfs"), base);
        remove_empty(&base.join("d/rootfs"), base);
        assert!(!base.join("c").exists());
        assert!(base.join("d").exists() && !base.join("d/rootfs").exists());
        remove_empty(Path::new("/mnt"), base);
        assert!(base.exists());
    }
}
