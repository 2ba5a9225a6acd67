//! What a jailed VM has on the host while it runs, and that nothing of it stays.

use std::fs;
use std::path::{Path, PathBuf};

use fc_testbed::leftovers::VmProcess;

use crate::fixture::Instance;

/// Directories of a cgroup, in every hierarchy.
pub fn cgroups(path: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten();
    let below = hierarchies.map(|hierarchy| hierarchy.path());
    let all = below.chain([PathBuf::from("/sys/fs/cgroup")]);
    all.map(|hierarchy| hierarchy.join(path.trim_start_matches('/')))
        .filter(|group| group.is_dir())
        .collect()
}

/// Processes in a cgroup.
#[track_caller]
pub fn processes(cgroup: &str) -> Vec<u32> {
    let groups = cgroups(cgroup);
    let group = groups.first().expect("a cgroup");
    let text = fs::read_to_string(group.join("cgroup.procs")).expect("its processes");
    text.lines()
        .map(|line| line.parse().expect("a number"))
        .collect()
}

/// A file of a cgroup, in the hierarchy that has it.
#[track_caller]
pub fn setting(cgroup: &str, file: &str) -> String {
    let groups = cgroups(cgroup);
    let mut found = groups
        .iter()
        .filter_map(|group| fs::read_to_string(group.join(file)).ok());
    let text = found
        .next()
        .unwrap_or_else(|| panic!("no {file} in {groups:?}"));
    text.trim().to_owned()
}

/// What a thread is like.
pub struct Thread {
    status: String,
    cgroups: String,
}

impl Thread {
    /// The thread with this directory in `/proc`; `None` when it has ended.
    fn look_at(directory: &Path) -> Option<Self> {
        let cgroups = fs::read_to_string(directory.join("cgroup")).ok()?;
        let status = fs::read_to_string(directory.join("status")).ok()?;
        let thread = Self { status, cgroups };
        // One that has ended is in no group, and nothing is allowed to it.
        let ended = thread.status("State:").starts_with(['Z', 'X']);
        (!ended).then_some(thread)
    }

    /// A field of its status.
    #[track_caller]
    pub fn status(&self, field: &str) -> &str {
        let mut lines = self.status.lines();
        let value = lines.find_map(|line| line.strip_prefix(field));
        value.expect("the field").trim()
    }

    /// The cgroup that sets its processors: cgroups(7), "/proc/\[pid\]/cgroup".
    #[track_caller]
    pub fn cgroup(&self) -> &str {
        let group = |of: &dyn Fn(&str) -> bool| {
            let mut lines = self.cgroups.lines().filter_map(|line| {
                let (_, controllers_and_path) = line.split_once(':')?;
                controllers_and_path.split_once(':')
            });
            let found = lines.find(|(controllers, _)| of(controllers));
            found.map(|(_, path)| path)
        };
        // Version 1 where it has the controller, else version 2, whose line names none.
        group(&|controllers| controllers.split(',').any(|name| name == "cpuset"))
            .or_else(|| group(&str::is_empty))
            .expect("a cgroup")
    }
}

/// All threads of a cgroup's processes. A VMM's for its drives come and go.
#[track_caller]
pub fn threads(cgroup: &str) -> Vec<Thread> {
    let processes = processes(cgroup).into_iter();
    let tasks = processes.filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
    tasks
        .flat_map(|tasks| tasks.flatten())
        .filter_map(|task| Thread::look_at(&task.path()))
        .collect()
}

/// The network namespace of a cgroup's processes, which is the same for all.
#[track_caller]
pub fn network(cgroup: &str) -> PathBuf {
    let pids = processes(cgroup).into_iter();
    let mut networks: Vec<PathBuf> = pids.map(|pid| network_of(&pid.to_string())).collect();
    networks.dedup();
    assert_eq!(networks.len(), 1, "{networks:?}");
    networks.remove(0)
}

/// The network namespace of a process; `self` is this one.
pub fn network_of(pid: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/net")).expect("a process")
}

/// What is shown to a jailed VMM while it runs.
pub fn shown(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("drives")).expect("a jail").flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Fails if anything is left of the instance's VMs, of this cgroup, or of a jail's user.
#[track_caller]
pub fn assert_gone(on: &Instance, cgroup: &str, user: u32) {
    assert_eq!(cgroups(cgroup), Vec::<PathBuf>::new(), "cgroups stay");
    assert_eq!(on.vm_dirs(), Vec::<PathBuf>::new(), "directories stay");
    assert_eq!(of_user(user), Vec::<String>::new(), "processes stay");
    let scope = on.scope();
    // The shim's binary is also what containerd runs in a bundle, when it gets to it, to clean up after a task.
    let of_vms = |process: &VmProcess| process.cwd.starts_with(on.layout.shim_base());
    let processes: Vec<_> = scope.processes().into_iter().filter(of_vms).collect();
    assert_eq!(processes, [], "processes stay");
    let left = scope.leftovers(&[]);
    let ours: Vec<_> = left
        .iter()
        .filter(|line| !line.starts_with("process"))
        // Other instances of this run have sockets at the same place.
        .filter(|line| !line.starts_with("socket"))
        .collect();
    assert!(ours.is_empty(), "{ours:?}");
}

/// Processes of a user that live: `leftovers` does not know those whose working directory is in a jail. (A zombie has
/// nothing any more; when its parent was killed, it is init's to reap.)
fn of_user(user: u32) -> Vec<String> {
    let user = user.to_string();
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|process| fs::read_to_string(process.path().join("status")).ok())
        .filter(|status| !status.contains("State:\tZ"))
        .filter(|status| {
            let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
            ids.is_some_and(|ids| ids.split_whitespace().any(|id| id == user))
        })
        .collect()
}
