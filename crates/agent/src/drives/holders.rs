//! Who keeps a file system from being unmounted: for error messages.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::mount::{Disk, is_listed};

/// Most holders that are named.
const MAX: usize = 5;

/// Names the processes that use the file system on a block device, which is `device` in stat(2) and `disk` in mount
/// tables: those that have it mounted in a mount namespace other than ours, or a file of it open. One of each cgroup.
pub(super) fn name(device: u64, disk: &Disk) -> String {
    let own = namespace(Path::new("/proc/self"));
    let mut holders = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let process = entry.path();
        // A process may end while it is looked at: then it holds nothing.
        let elsewhere = namespace(&process) != own;
        let mounted =
            || fs::read(process.join("mountinfo")).is_ok_and(|table| is_listed(&table, disk));
        if (elsewhere && mounted()) || has_open(&process, device) {
            let word = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default();
            let cgroup = word("cgroup");
            let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
            let cgroup = cgroup.unwrap_or("?").to_owned();
            let text = format!("process {pid} ({}) in cgroup {cgroup}", word("comm").trim());
            holders.entry(cgroup).or_insert(text);
        }
    }
    match holders.len() {
        0 => "somebody who is no process".to_owned(),
        _ => holders
            .into_values()
            .take(MAX)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn namespace(process: &Path) -> Option<std::path::PathBuf> {
    fs::read_link(process.join("ns/mnt")).ok()
}

fn has_open(process: &Path, device: u64) -> bool {
    let on_device = |path: &Path| fs::metadata(path).is_ok_and(|found| found.dev() == device);
    let fds = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    ["cwd", "root", "exe"]
        .iter()
        .any(|name| on_device(&process.join(name)))
        || fds.into_iter().any(|fd| on_device(&fd.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let device = file.as_file().metadata().unwrap().dev();
        let this = Path::new("/proc/self");
        assert!(has_open(this, device));
        let unused = nix::sys::stat::makedev(4095, 1);
        assert!(!has_open(this, unused));
        let disk = Disk::new(4095, 1, "/dev/none".to_owned());
        assert_eq!(name(unused, &disk), "somebody who is no process");
    }
}
