//! An address that only one daemon serves.
//!
//! A lock beside the socket, held for life, decides which daemon; only its holder removes the
//! socket of a dead one, so that two daemons never take it from each other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;

/// A socket and the right to it. Dropping it removes the socket.
#[derive(Debug)]
pub struct Claimed {
    path: PathBuf,
    listener: Option<UnixListener>,
    lock: File,
}

/// Why an address cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon has it.
    #[error("Another firecracker-control serves {} already", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Some other program has it.
    #[error(
        "Another program serves {} already; is it containerd, whose [ttrpc] address has not been moved?",
        path.display()
    )]
    Foreign {
        /// The socket.
        path: PathBuf,
    },
    /// It is not a socket.
    #[error("{} is there and no socket", path.display())]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// The lock, the directory or the socket.
    #[error("Cannot serve {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Claimed {
    /// Claims the address `path` and listens there, for the owner only (mode 0600). Its directory
    /// is made if needed. The lock is the file `<path>.lock`, which stays.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn new(path: &Path) -> Result<Self, ClaimError> {
        let error = |source| ClaimError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(error)?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(lock_path(path))
            .map_err(error)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ClaimError::Taken {
                    path: path.to_owned(),
                });
            }
            Err(e) => return Err(error(e.into())),
        }
        remove_stale(path).await?;
        let listener = fc_vsock::unix::bind(path).map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            listener: Some(listener),
            lock,
        })
    }

    /// The listener; only the first time.
    pub fn listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // A socket that stays is stale, and the next daemon removes it.
        let _ = std::fs::remove_file(&self.path);
        // Closing it is not enough: a shim that is just being started has a copy until its program runs. This can
        // only fail for a descriptor that is none.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

/// Removes a socket on which nobody listens.
async fn remove_stale(path: &Path) -> Result<(), ClaimError> {
    let error = |source| ClaimError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(error(e)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ClaimError::NoSocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match fc_vsock::unix::connect(path).await {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(error)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(ClaimError::Foreign {
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn one_at_a_time_and_a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/control.sock");
        let first = Claimed::new(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = Claimed::new(&path).await.unwrap_err();
        assert!(matches!(second, ClaimError::Taken { .. }), "{second}");
        assert!(path.exists(), "the first one's socket was left alone");
        drop(first);
        assert!(!path.exists());

        // As a daemon that was killed leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let mut third = Claimed::new(&path).await.unwrap();
        let listener = third.listener().unwrap();
        let (client, server) = tokio::join!(fc_vsock::unix::connect(&path), listener.accept());
        assert!(client.is_ok() && server.is_ok());
        assert!(third.listener().is_none());
    }

    #[tokio::test]
    async fn what_is_not_ours_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("containerd.sock.ttrpc");
        let _containerd = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = Claimed::new(&path).await.unwrap_err();
        assert!(matches!(error, ClaimError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("[ttrpc] address"));
        assert!(path.exists());

        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        let error = Claimed::new(&file).await.unwrap_err();
        assert!(matches!(error, ClaimError::NoSocket { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }
}
