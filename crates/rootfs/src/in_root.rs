//! Directories below a root that names and links in it do not lead out of.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{self, Errno};

/// Opens (`O_PATH`) the directory at `path`, which begins at `root` whether or not it is absolute; links in it
/// are followed there, and `..` stays below.
///
/// # Errors
/// openat2(2)'s.
pub fn directory_in_root(root: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(&root, path, flags, Mode::empty(), inside) {
            // Somebody renamed or mounted something, anywhere on the host, while a `..` was followed: the kernel does
            // not know where that leads, and wants to be asked again.
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::fs::open;

    use super::*;

    #[test]
    fn whatever_is_renamed_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        symlink("../../../../a", dir.path().join("root/a/link")).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(dir.path().join("root"), flags, Mode::empty()).unwrap();
        let expected = dir.path().join("root/a").metadata().unwrap().ino();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let names = ["one", "other"].map(|name| dir.path().join(name));
                fs::create_dir(&names[0]).unwrap();
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&names[0], &names[1]).unwrap();
                    fs::rename(&names[1], &names[0]).unwrap();
                }
            });
            // So long that somebody renames something while it is followed, most times.
            let path = format!("/{}a/link", "a/b/../../".repeat(50));
            let opened: Vec<_> = (0..5000)
                .map(|_| directory_in_root(&root, Path::new(&path)))
                .map(|opened| fs::File::from(opened?).metadata().map_err(|_| Errno::IO))
                .collect();
            done.store(true, Ordering::Relaxed);
            for metadata in opened {
                assert_eq!(metadata.unwrap().ino(), expected);
            }
        });
        let missing = directory_in_root(&root, Path::new("/a/missing"));
        assert_eq!(missing.unwrap_err(), Errno::NOENT);
    }
}
