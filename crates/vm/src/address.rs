//! Socket addresses of a VM's shim, where every client computes them the same way.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Directory of all shim sockets, whatever containerd's state directory is.
pub const SOCKET_DIR: &str = "/run/containerd/s";
/// What the control socket's name has after the task socket's.
pub const CONTROL_SUFFIX: &str = "-fccontrol";

/// Path of the task API's socket: [`SOCKET_DIR`] and the SHA-256, in hex, of
/// containerd's gRPC address, the namespace and the VM id joined as path elements.
#[must_use]
pub fn task_socket(containerd_address: &str, namespace: &str, vm_id: &str) -> PathBuf {
    let joined = clean(&[containerd_address, namespace, vm_id].join("/"));
    let digest = Sha256::digest(joined.as_bytes());
    Path::new(SOCKET_DIR).join(data_encoding::HEXLOWER.encode(&digest))
}

/// Path of the control API's socket that belongs to `task_socket`.
#[must_use]
pub fn control_socket(task_socket: &Path) -> PathBuf {
    let mut path = task_socket.as_os_str().to_owned();
    path.push(CONTROL_SUFFIX);
    PathBuf::from(path)
}

/// A socket path as containerd writes it: `unix://` and the path.
#[must_use]
pub fn url(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// Go's `filepath.Clean` for what can occur here: repeated slashes, `.` and `..`.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|p| *p != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    format!("{}{}", if rooted { "/" } else { "" }, parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_containerds() {
        // printf %s /run/containerd/containerd.sock/default/vm1 | sha256sum
        assert_eq!(
            task_socket("/run/containerd/containerd.sock", "default", "vm1"),
            Path::new(SOCKET_DIR)
                .join("cb190ff14ad3474330cfb6b4e0d8d80ead8af016f0c94085f6e40530de213813")
        );
    }

    #[test]
    fn joins_like_go() {
        assert_eq!(clean("/run//c.sock/./ns/vm"), "/run/c.sock/ns/vm");
        assert_eq!(clean("/a/../b"), "/b");
        assert_eq!(clean("/../b"), "/b");
        assert_eq!(clean("a/../../b"), "../b");
    }

    #[test]
    fn fits_a_socket_address() {
        let socket = control_socket(&task_socket("/x", &"n".repeat(76), &"v".repeat(76)));
        assert!(socket.as_os_str().len() < 108);
        assert!(url(&socket).starts_with("unix:///run/containerd/s/"));
    }
}
