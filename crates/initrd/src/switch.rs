//! File systems of the initrd itself, and the step from it into the root image.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::root::NEW_ROOT;

/// Type and place of the kernel's own file systems.
const API_FILESYSTEMS: [(&str, &str); 3] =
    [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")];

/// Why one of the kernel's own file systems could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("Cannot mount {fstype} at {path}")]
pub(crate) struct MountError {
    fstype: &'static str,
    path: &'static str,
    #[source]
    source: io::Error,
}

/// Why the root image's init could not be executed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SwitchError {
    #[error("The root image has no directory {path} to move a mount to")]
    Move {
        path: &'static str,
        #[source]
        source: Errno,
    },
    #[error("Cannot make the root image the root directory")]
    Root(#[source] io::Error),
    #[error("Cannot execute {init} of the root image (init= on the kernel command line)")]
    Exec {
        init: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Mounts `/proc`, `/sys` and `/dev`, unless the kernel mounted it already.
pub(crate) fn mount_api_filesystems() -> Result<(), MountError> {
    for (fstype, path) in API_FILESYSTEMS {
        fs::create_dir_all(path)
            .and_then(|()| {
                match mount(
                    Some(fstype),
                    path,
                    Some(fstype),
                    MsFlags::MS_NOSUID,
                    None::<&str>,
                ) {
                    // The kernel may have mounted devtmpfs itself.
                    Err(Errno::EBUSY) => Ok(()),
                    result => result.map_err(io::Error::from),
                }
            })
            .map_err(|source| MountError {
                fstype,
                path,
                source,
            })?;
    }
    Ok(())
}

/// Makes [`NEW_ROOT`] the root directory and executes `init` there with `arguments`, this
/// process's environment and `extra`. Returns only errors.
pub(crate) fn into_root(
    init: &Path,
    arguments: &[OsString],
    extra: Option<(&str, String)>,
) -> Result<Infallible, SwitchError> {
    for (_, path) in API_FILESYSTEMS {
        let target = format!("{NEW_ROOT}{path}");
        mount(
            Some(path),
            target.as_str(),
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .map_err(|source| SwitchError::Move { path, source })?;
    }
    // Modules and this program would otherwise occupy the guest's memory for good. The running
    // program survives the removal of its file.
    if let Ok(root) = fs::metadata("/") {
        remove_contents(Path::new("/"), root.dev());
    }
    std::env::set_current_dir(NEW_ROOT)
        .and_then(|()| {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
            std::os::unix::fs::chroot(".")?;
            std::env::set_current_dir("/")
        })
        .map_err(SwitchError::Root)?;
    let source = Command::new(init).args(arguments).envs(extra).exec();
    Err(SwitchError::Exec {
        init: init.to_owned(),
        source,
    })
}

/// Removes everything below `dir` that is on device `dev`; what cannot be removed stays.
fn remove_contents(dir: &Path, dev: u64) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.dev() != dev => {}
            Ok(meta) if meta.is_dir() => {
                remove_contents(&path, dev);
                // A mount point below it keeps it; the initrd is out of reach afterwards anyway.
                let _ = fs::remove_dir(&path);
            }
            Ok(_) => {
                let _ = fs::remove_file(&path);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_files_directories_and_links_but_not_their_targets() {
        let base = std::env::temp_dir().join(format!("fc-initrd-{}", std::process::id()));
        let inside = base.join("root");
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::write(inside.join("a/b/file"), "x").unwrap();
        fs::write(base.join("kept"), "x").unwrap();
        std::os::unix::fs::symlink(base.join("kept"), inside.join("link")).unwrap();
        remove_contents(&inside, fs::metadata(&inside).unwrap().dev());
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 0);
        assert!(base.join("kept").exists());
        // Another device than the files' one: nothing may go.
        remove_contents(&base, 0);
        assert!(base.join("kept").exists());
        fs::remove_dir_all(&base).unwrap();
    }
}
