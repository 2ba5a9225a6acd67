//! The file systems that are not in the root image.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::SetupError;
use crate::debug;

/// Where the cgroup hierarchy is.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

struct Mount {
    fstype: &'static str,
    path: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
    /// Whether containers can run without it, on a kernel that lacks it.
    optional: bool,
}

const QUIET: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);
const NOSUID: MsFlags = MsFlags::MS_NOSUID;
const NODEV: MsFlags = MsFlags::MS_NODEV;
const NONE: MsFlags = MsFlags::empty();

const fn mount_of(
    fstype: &'static str,
    path: &'static str,
    flags: MsFlags,
    data: Option<&'static str>,
) -> Mount {
    Mount {
        fstype,
        path,
        flags,
        data,
        optional: false,
    }
}

/// In order; bundles may hold device nodes and setuid programs of containers.
const ALL: [Mount; 11] = [
    mount_of("proc", "/proc", QUIET, None),
    mount_of("sysfs", "/sys", QUIET, None),
    mount_of("devtmpfs", "/dev", NOSUID, None),
    mount_of(
        "devpts",
        "/dev/pts",
        NOSUID.union(MsFlags::MS_NOEXEC),
        Some("gid=5,mode=620,ptmxmode=666"),
    ),
    mount_of("tmpfs", "/dev/shm", NOSUID.union(NODEV), None),
    Mount {
        optional: true,
        ..mount_of("mqueue", "/dev/mqueue", QUIET, None)
    },
    mount_of("cgroup2", CGROUPS, QUIET, None),
    mount_of("tmpfs", "/run", NOSUID.union(NODEV), Some("mode=755")),
    mount_of("tmpfs", "/tmp", NOSUID.union(NODEV), Some("mode=1777")),
    mount_of(
        "tmpfs",
        fc_proto::guest::BUNDLE_ROOT,
        NONE,
        Some("mode=700"),
    ),
    // What containers of the VM leave to each other.
    mount_of("tmpfs", "/volumes", NODEV, Some("mode=755")),
];

/// Mounts all of them; what is mounted already stays.
pub(super) fn mount_all() -> Result<(), SetupError> {
    for entry in &ALL {
        if let Err(source) = mount_one(entry) {
            if entry.optional {
                debug!("No {} at {}: {source}", entry.fstype, entry.path);
                continue;
            }
            return Err(SetupError::Mount {
                fstype: entry.fstype,
                path: entry.path,
                source,
            });
        }
    }
    Ok(())
}

fn mount_one(entry: &Mount) -> io::Result<()> {
    // Below a kernel's file system the mount point can be made, in the root image it must exist.
    if !fs::exists(entry.path)? {
        fs::create_dir(entry.path)?;
    }
    let result = mount(
        Some(entry.fstype),
        entry.path,
        Some(entry.fstype),
        entry.flags,
        entry.data,
    );
    match result {
        // The initrd has mounted it.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
