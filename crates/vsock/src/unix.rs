//! Unix sockets at paths of any length.
//!
//! An address holds 107 bytes of path, and the directory of a VM, named after a namespace and an id, is often
//! longer. A longer path is reached through its directory: `/proc/self/fd/<directory>/<name>`.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};

/// Longest path that fits in an address, without its final NUL.
const MAX_PATH: usize = 107;

/// A path that fits in an address, with the directory that it may go through.
struct Address {
    path: PathBuf,
    /// Keeps the directory's `/proc` entry alive while `path` is used.
    _directory: Option<OwnedFd>,
}

impl Address {
    fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= MAX_PATH {
            return Ok(Self {
                path: path.to_owned(),
                _directory: None,
            });
        }
        let too_long = || io::Error::from(io::ErrorKind::InvalidFilename);
        let name = path.file_name().ok_or_else(too_long)?;
        let parent = path.parent().ok_or_else(too_long)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        let path = Path::new("/proc/self/fd")
            .join(directory.as_raw_fd().to_string())
            .join(name);
        if path.as_os_str().len() > MAX_PATH {
            return Err(too_long());
        }
        Ok(Self {
            path,
            _directory: Some(directory),
        })
    }
}

/// Connects to the socket at `path`.
///
/// # Errors
/// As `connect(2)`; [`io::ErrorKind::InvalidFilename`] if the file name alone is too long for an address.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = Address::new(path)?;
    UnixStream::connect(&address.path).await
}

/// Listens on a new socket at `path`, which must not exist and is open to its owner only (mode 0600).
///
/// # Errors
/// As `bind(2)` and `listen(2)`; [`io::ErrorKind::InvalidFilename`] as for [`connect`].
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let address = Address::new(path)?;
    let listener = UnixListener::bind(&address.path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).inspect_err(|_| {
        // The socket is ours and unusable; the first error is the one to report.
        let _ = std::fs::remove_file(path);
    })?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn long_paths_work() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("d".repeat(200));
        std::fs::create_dir(&dir).expect("a directory with a long name");
        let path = dir.join("firecracker.sock");
        let listener = bind(&path).expect("a listener");
        let mode = std::fs::metadata(&path)
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let (connected, accepted) = tokio::join!(connect(&path), listener.accept());
        connected.expect("a connection");
        accepted.expect("its other end");
    }

    #[tokio::test]
    async fn errors_are_the_systems() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = connect(&dir.path().join("none"))
            .await
            .expect_err("no socket");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let name = connect(&dir.path().join("n".repeat(120)))
            .await
            .expect_err("too long");
        assert_eq!(name.kind(), io::ErrorKind::InvalidFilename);
    }
}
