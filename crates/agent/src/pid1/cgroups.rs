//! The cgroup hierarchy (version 2): controllers for containers. The agent stays in the root
//! cgroup, which alone may hold processes beside other cgroups.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::SetupError;
use crate::debug;

/// Passes all controllers of the hierarchy at `root` on to the cgroup `containers` and those below
/// it.
pub(super) fn delegate(root: &Path, containers: &str) -> Result<(), SetupError> {
    let containers = root.join(containers.trim_start_matches('/'));
    make(&containers)?;
    for dir in [root, &containers] {
        let path = dir.join("cgroup.controllers");
        let available = fs::read_to_string(&path).map_err(|source| SetupError::Cgroup {
            action: "read",
            path,
            source,
        })?;
        let control = dir.join("cgroup.subtree_control");
        let words: Vec<String> = available
            .split_ascii_whitespace()
            .map(|controller| format!("+{controller}"))
            .collect();
        // All at once: every write makes the kernel wait for all its processors.
        if write(control.clone(), &words.join(" ")).is_ok() {
            continue;
        }
        // A controller that cannot be passed on must not keep back the others.
        for word in words {
            if let Err(error) = write(control.clone(), &word) {
                debug!("No {word}: {}", fc_errors::chain(&error));
            }
        }
    }
    Ok(())
}

fn make(path: &Path) -> Result<(), SetupError> {
    match fs::create_dir(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(SetupError::Cgroup {
            action: "make",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn write(path: PathBuf, text: &str) -> Result<(), SetupError> {
    fs::write(&path, text).map_err(|source| SetupError::Cgroup {
        action: "write",
        path,
        source,
    })
}
