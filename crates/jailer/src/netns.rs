//! Whether a path is a network namespace.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

/// Why a path cannot be a jail's network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It cannot be opened.
    #[error("Cannot open the network namespace {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is not a network namespace", path.display())]
    NotANamespace {
        /// The path.
        path: PathBuf,
    },
}

/// Checks that `path` is a network namespace.
///
/// # Errors
/// When it is not there or is something else.
pub(crate) fn check(path: &Path) -> Result<(), NetnsError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = open(path, flags, Mode::empty()).map_err(|source| NetnsError::Open {
        path: path.to_owned(),
        source: source.into(),
    })?;
    // SAFETY: the call takes no argument and only tells the type of a namespace; any other file refuses it.
    let kind = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&fd), libc::NS_GET_NSTYPE) };
    if kind == libc::CLONE_NEWNET {
        Ok(())
    } else {
        Err(NetnsError::NotANamespace {
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_network_namespace_is_one() {
        check(Path::new("/proc/self/ns/net")).unwrap();
        for other in ["/proc/self/ns/uts", "/proc/self/stat", "/dev/null"] {
            let error = check(Path::new(other)).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{other} is not a network namespace")
            );
        }
        let missing = check(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(missing, NetnsError::Open { .. }));
    }
}
