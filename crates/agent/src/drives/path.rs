//! Mount points: where they may be, how they are made and removed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

/// Trees that belong to the kernel.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// `path` with all links resolved; its tail need not exist.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut real = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => {
                real.pop();
            }
            Component::Normal(name) => {
                real.push(name);
                match real.canonicalize() {
                    Ok(resolved) => real = resolved,
                    // A link to nowhere must not pass as a directory that is yet to be made.
                    Err(e) if e.kind() == io::ErrorKind::NotFound && !real.is_symlink() => {}
                    Err(e) => return Err(e),
                }
            }
            _ => {}
        }
    }
    Ok(real)
}

/// Whether a resolved path belongs to the kernel.
pub(super) fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path.starts_with(system))
}

/// Makes a directory and its parents, accessible to root only; fine when it exists.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes what [`make_private`] made below `base`, as far as it is empty.
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
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_dots_are_resolved_and_a_tail_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        symlink("/proc", base.join("p")).unwrap();
        symlink("/nowhere/at/all", base.join("dangling")).unwrap();
        assert_eq!(resolve(&base.join("a/../b/c")).unwrap(), base.join("b/c"));
        assert!(is_system(&resolve(&base.join("p/self")).unwrap()));
        assert!(is_system(&resolve(Path::new("/usr/../sys/x")).unwrap()));
        assert!(resolve(&base.join("dangling/x")).is_err());
        assert!(!is_system(Path::new("/devices")));
        assert!(!is_system(Path::new("/container")));
    }

    #[test]
    fn empty_directories_are_removed_up_to_the_base() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        make_private(&base.join("c/rootfs")).unwrap();
        make_private(&base.join("d/rootfs")).unwrap();
        fs::write(base.join("d/config.json"), "").unwrap();
        remove_empty(&base.join("c/rootfs"), base);
        remove_empty(&base.join("d/rootfs"), base);
        assert!(!base.join("c").exists());
        assert!(base.join("d").exists() && !base.join("d/rootfs").exists());
        remove_empty(Path::new("/mnt"), base);
        assert!(base.exists());
    }
}
