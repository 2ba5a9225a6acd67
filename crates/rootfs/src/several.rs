//! A rootfs of several mounts.
//!
//! They mean what containerd's `mount.All` makes of them: each is mounted in order, at the rootfs or at its
//! target below, and covers what was there. A VM gets the tree that results as one image.

use crate::layers::{Layer, Layers};
use crate::mounts::{Mount, MountError, Plan, Writable, plan_one};

/// One of the mounts that a rootfs consists of.
#[derive(Debug)]
pub(crate) struct Part {
    /// Where it is mounted: a path below the rootfs; empty for the rootfs itself.
    pub(crate) target: String,
    pub(crate) layers: Layers,
}

impl Part {
    /// All of a rootfs.
    pub(crate) fn whole(layers: Layers) -> Part {
        Part {
            target: String::new(),
            layers,
        }
    }
}

/// Whether a target stands for the rootfs itself.
pub(crate) fn is_root(target: &str) -> bool {
    target.split('/').all(|name| matches!(name, "" | "."))
}

/// Plans a rootfs of all of `mounts`, the first of which is for the rootfs itself.
pub(crate) fn plan(mounts: &[Mount]) -> Result<Plan, MountError> {
    let (parts, writable) = parts(mounts)?;
    Ok(Plan::Several { parts, writable })
}

/// The parts that `mounts`, one or several, make up, and what a container may write to.
pub(crate) fn parts(mounts: &[Mount]) -> Result<(Vec<Part>, Writable), MountError> {
    let mut parts = Vec::with_capacity(mounts.len());
    let mut writable = Writable::No;
    for mount in mounts {
        let root = is_root(&mount.target);
        if parts.is_empty() && !root {
            return Err(MountError::Target(mount.target.clone()));
        }
        let (layers, of_this) = content(mount)?;
        if root {
            writable = of_this;
        }
        let target = if root { "" } else { &mount.target };
        parts.push(Part {
            target: target.to_owned(),
            layers,
        });
    }
    Ok((parts, writable))
}

/// What one mount holds, all of it to be read, and what there is for the container to write to instead.
fn content(mount: &Mount) -> Result<(Layers, Writable), MountError> {
    match plan_one(mount)? {
        Plan::Device(device) => {
            let writable = if device.read_only {
                Writable::No
            } else {
                Writable::EmptyDisk
            };
            let layers = Layers {
                layers: vec![Layer::Device(device)],
                options: Vec::new(),
                immutable: false,
            };
            Ok((layers, writable))
        }
        Plan::Layers {
            mut layers,
            writable: Writable::DiskWith(upper),
        } => {
            // Other mounts may be inside: the image is the only place for all of it.
            layers.layers.insert(0, Layer::directory(upper)?);
            Ok((layers, Writable::EmptyDisk))
        }
        Plan::Layers { layers, writable } => Ok((layers, writable)),
        Plan::Several { .. } => unreachable!("one mount is not several"),
    }
}
