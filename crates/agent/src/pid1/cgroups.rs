//! The cgroup hierarchy (version 2): the agent in a leaf of its own, controllers for containers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::SetupError;
use crate::debug;

/// Passes all controllers of the hierarchy at `root` on to the cgroup `containers` and those below
/// it, and moves this process out of their way.
pub(super) fn delegate(root: &Path, containers: &str) -> Result<(), SetupError> {
    let agent = root.join("agent");
    make(&agent)?;
    write(agent.join("cgroup.procs"), &std::process::id().to_string())?;
    let containers = root.join(containers.trim_start_matches('/'));
    make(&containers)?;
    for dir in [root, &containers] {
        let path = dir.join("cgroup.controllers");
        let available = fs::read_to_string(&path).map_err(|source| SetupError::Cgroup {
            action: "read",
            path,
            source,
        })?;
        // One by one: a controller that cannot be passed on must not keep back the others.
        for controller in available.split_ascii_whitespace() {
            let control = dir.join("cgroup.subtree_control");
            if let Err(error) = write(control, &format!("+{controller}")) {
                debug!("No {controller} controller: {}", crate::log::chain(&error));
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
