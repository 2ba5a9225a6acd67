//! The control groups of a jailed VMM: one per hierarchy of the host, all under one path.
//!
//! Works on hosts with cgroup v1 (a hierarchy per controller), v2 (one hierarchy) and both.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use crate::member::Member;

/// Parent of the groups if the request names none.
pub(crate) const DEFAULT_PARENT: &str = "/firecracker-containerd";

/// How many processes are held at a time: less than a process may have descriptors.
const BATCH: usize = 128;
/// Between two attempts to remove a group.
const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// Why there is no control group for a VM.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path leads somewhere else.
    #[error("CgroupPath {0:?} must be made of plain names: `.` and `..` are not allowed")]
    Path(String),
    /// The host's hierarchies are unknown.
    #[error("Cannot read which cgroup hierarchies the host has")]
    Mounts {
        /// Why.
        source: io::Error,
    },
    /// There are none.
    #[error("The host has no cgroup hierarchy mounted: mount cgroup2 at /sys/fs/cgroup")]
    NoHierarchy,
    /// The group cannot be made.
    #[error("Cannot make the cgroup {}", path.display())]
    Make {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Other VMs have all the names.
    #[error("The cgroups {} exist: other VMs use them, or something left them and they can be removed", .0.join(" and "))]
    Taken(Vec<String>),
}

/// The names that the group of a VM may get, best first: what clients of the original know, and, when a VM of
/// another namespace has that, one with the namespace. `@` is in no identifier, so that the two never meet.
///
/// # Errors
/// When `parent` is not made of plain names.
pub(crate) fn candidates(
    parent: &str,
    namespace: &str,
    vm_id: &str,
) -> Result<[String; 2], CgroupError> {
    let parent = if parent.is_empty() {
        DEFAULT_PARENT
    } else {
        parent
    };
    let plain = Path::new(parent)
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !plain || parent.contains("/./") || parent.ends_with("/.") {
        return Err(CgroupError::Path(parent.to_owned()));
    }
    let parent = Path::new("/").join(parent);
    let path = |name: String| parent.join(name).display().to_string();
    Ok([path(vm_id.to_owned()), path(format!("{vm_id}@{namespace}"))])
}

/// The host's hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    mounts: Vec<Mount>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    path: PathBuf,
    v2: bool,
    /// A new group of it takes no processes before its processors are set.
    cpuset: bool,
}

impl Hierarchies {
    /// Those that are mounted.
    ///
    /// # Errors
    /// When there are none or they cannot be found out.
    pub(crate) fn of_host() -> Result<Self, CgroupError> {
        let text = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|source| CgroupError::Mounts { source })?;
        let this = Self::parse(&text);
        if this.mounts.is_empty() {
            return Err(CgroupError::NoHierarchy);
        }
        Ok(this)
    }

    /// A directory that stands for the only hierarchy, of version 2.
    #[cfg(test)]
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            mounts: vec![Mount {
                path: path.to_owned(),
                v2: true,
                cpuset: false,
            }],
        }
    }

    /// From proc_pid_mountinfo(5).
    fn parse(mountinfo: &str) -> Self {
        let mut seen = BTreeSet::new();
        let mounts = mountinfo
            .lines()
            .filter_map(|line| {
                let (mount, system) = line.split_once(" - ")?;
                let mut mount = mount.split(' ').skip(2);
                let (device, path) = (mount.next()?, mount.nth(1)?);
                let mut system = system.split(' ');
                let v2 = match system.next()? {
                    "cgroup" => false,
                    "cgroup2" => true,
                    _ => return None,
                };
                let cpuset = !v2 && system.nth(1)?.split(',').any(|option| option == "cpuset");
                // The same hierarchy may be mounted at several places.
                seen.insert(device.to_owned()).then(|| Mount {
                    path: path.into(),
                    v2,
                    cpuset,
                })
            })
            .collect();
        Self { mounts }
    }

    /// Makes the group `path` in one hierarchy, the same on every call, so that it is the caller's. False when
    /// it exists already. The OCI runtime makes it in the others.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn claim(&self, path: &str) -> Result<bool, CgroupError> {
        let mount = self
            .mounts
            .iter()
            .find(|mount| !mount.v2 && !mount.cpuset)
            .or_else(|| self.mounts.iter().find(|mount| mount.v2))
            .or_else(|| self.mounts.first())
            .ok_or(CgroupError::NoHierarchy)?;
        let directory = inside(&mount.path, path);
        let error = |path: &Path, source| CgroupError::Make {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = directory.parent() {
            fs::create_dir_all(parent).map_err(|source| error(parent, source))?;
        }
        match fs::create_dir(&directory) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(error(&directory, source)),
        }
    }

    /// Kills every process in the group and below, and waits until all have ended. Orphans that became this
    /// process' children are reaped, except `keep`, whose status somebody else wants.
    ///
    /// # Errors
    /// When they have not ended within `bound`, or the group cannot be read.
    pub(crate) fn kill(&self, path: &str, keep: Option<u32>, bound: Duration) -> io::Result<()> {
        let deadline = Instant::now() + bound;
        // A process may have made another one just before it was killed.
        while !self.processes(path)?.is_empty() {
            let members = self.members(path, &BTreeSet::new())?;
            self.kill_at_once(path);
            for member in &members {
                member.kill()?;
            }
            for member in members {
                let rest = deadline.saturating_duration_since(Instant::now());
                if !member.ends_within(rest)? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                if keep.map(i64::from) != Some(member.pid().as_raw_pid().into()) {
                    member.reap();
                }
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// Lets the kernel kill all processes of a group, where it can: not even one that is just being made is
    /// missed. What it cannot is killed one by one.
    fn kill_at_once(&self, path: &str) {
        for mount in self.mounts.iter().filter(|mount| mount.v2) {
            let file = inside(&mount.path, path).join("cgroup.kill");
            let written = fs::OpenOptions::new()
                .write(true)
                .open(&file)
                .and_then(|mut file| file.write_all(b"1"));
            if let Err(error) = written
                && !is_gone(&error)
            {
                tracing::debug!(file = %file.display(), %error, "The processes of the group are killed one by one");
            }
        }
    }

    /// Processes in the group and below, in any hierarchy, without those in `except`; a bounded number at a time.
    pub(crate) fn members(&self, path: &str, except: &BTreeSet<i32>) -> io::Result<Vec<Member>> {
        let mut members = Vec::new();
        for pid in self.processes(path)?.difference(except).take(BATCH) {
            members.extend(Member::open(*pid)?);
        }
        self.retain_members(path, &mut members)?;
        Ok(members)
    }

    /// Drops the processes that are not in the group: they have the numbers of such as have ended since the group
    /// was read.
    fn retain_members(&self, path: &str, members: &mut Vec<Member>) -> io::Result<()> {
        let listed = self.listed(path)?;
        members.retain(|member| listed.contains(&member.pid().as_raw_pid()));
        Ok(())
    }

    /// The processes in the group and below, in any hierarchy; ended ones that nobody has reaped yet are not.
    pub(crate) fn processes(&self, path: &str) -> io::Result<BTreeSet<i32>> {
        let mut pids = self.listed(path)?;
        pids.retain(|pid| !is_zombie(*pid));
        Ok(pids)
    }

    fn listed(&self, path: &str) -> io::Result<BTreeSet<i32>> {
        let mut pids = BTreeSet::new();
        for directory in self.directories(path) {
            for directory in tree(&directory)? {
                let text = match fs::read_to_string(directory.join("cgroup.procs")) {
                    // Gone meanwhile.
                    Err(error) if is_gone(&error) => continue,
                    other => other?,
                };
                pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            }
        }
        // 0 stands for a process that this one cannot see.
        pids.retain(|pid| *pid > 0);
        Ok(pids)
    }

    /// Removes the group and what is below in every hierarchy. A process that entered it meanwhile is killed.
    ///
    /// # Errors
    /// Each directory that stays, in particular because of processes that have not ended within `bound`.
    pub(crate) fn remove(
        &self,
        path: &str,
        keep: Option<u32>,
        bound: Duration,
    ) -> Vec<(PathBuf, io::Error)> {
        let deadline = Instant::now() + bound;
        loop {
            let errors = self.try_remove(path);
            let busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() || !errors.iter().any(|(_, error)| busy(error)) {
                return errors;
            }
            // Nothing tells when a process that is just ending has left its group.
            if self.kill(path, keep, rest).is_ok() {
                std::thread::sleep(RETRY_INTERVAL);
            }
        }
    }

    fn try_remove(&self, path: &str) -> Vec<(PathBuf, io::Error)> {
        let mut errors = Vec::new();
        for directory in self.directories(path) {
            match tree(&directory) {
                Ok(directories) => {
                    for directory in directories.into_iter().rev() {
                        match fs::remove_dir(&directory) {
                            Err(error) if !is_gone(&error) => errors.push((directory, error)),
                            _ => {}
                        }
                    }
                }
                Err(error) => errors.push((directory, error)),
            }
        }
        errors
    }

    /// Removes the group where it is empty; whoever uses it keeps it.
    pub(crate) fn remove_if_unused(&self, path: &str) {
        for directory in self.directories(path) {
            // One that is in use says so.
            let _ = fs::remove_dir(directory);
        }
    }

    fn directories(&self, path: &str) -> Vec<PathBuf> {
        let directories = self.mounts.iter().map(|mount| inside(&mount.path, path));
        directories.filter(|directory| directory.is_dir()).collect()
    }
}

fn inside(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// `directory` and the directories below, parents first. Others may remove them meanwhile.
fn tree(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next).cloned() {
        next += 1;
        match below(&directory) {
            Err(error) if is_gone(&error) => {}
            directories => found.extend(directories?),
        }
    }
    Ok(found)
}

/// The directories in `directory`.
fn below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Whether a process has ended and only its parent does not know yet. cgroup v1 goes on listing it.
fn is_zombie(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
