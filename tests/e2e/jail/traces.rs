//! What a jailed VM has on the host while it runs, and that nothing of it stays.

use std::fs;
use std::path::{Path, PathBuf};

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

/// A field of a process' or a thread's status.
#[track_caller]
pub fn status(directory: &Path, field: &str) -> String {
    let status = fs::read_to_string(directory.join("status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.expect("the field").trim().to_owned()
}

/// All threads of a cgroup's processes: their directories in `/proc`.
#[track_caller]
pub fn threads(cgroup: &str) -> Vec<PathBuf> {
    let processes = processes(cgroup).into_iter();
    let tasks = processes.flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).expect("it"));
    tasks.map(|task| task.expect("a thread").path()).collect()
}

/// The cgroup that sets a thread's processors: cgroups(7), "/proc/\[pid\]/cgroup".
#[track_caller]
pub fn cgroup_of(thread: &Path) -> String {
    let table = fs::read_to_string(thread.join("cgroup")).expect("a thread");
    let group = |of: &dyn Fn(&str) -> bool| {
        let mut lines = table.lines().filter_map(|line| {
            let (_, controllers_and_path) = line.split_once(':')?;
            controllers_and_path.split_once(':')
        });
        let found = lines.find(|(controllers, _)| of(controllers));
        found.map(|(_, path)| path.to_owned())
    };
    // Version 1 where it has the controller, else version 2, whose line names none.
    group(&|controllers| controllers.split(',').any(|name| name == "cpuset"))
        .or_else(|| group(&str::is_empty))
        .expect("a cgroup")
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
    let left = on.scope().leftovers(&[]);
    let ours: Vec<_> = left
        .iter()
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
