//! What a run left on the host: processes, mounts, loop devices, sockets and
//! files that are there now and belong to the product.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Programs that exist only while a VM does.
const VM_PROGRAMS: [&str; 4] = [
    "containerd-shim-aws-firecracker",
    "firecracker-tcg",
    "firecracker",
    "qemu-system-x86_64",
];
/// Where shims have their sockets, whatever containerd's state directory is.
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// Everything of the product that is on the host at one moment, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers(BTreeSet<String>);

impl Leftovers {
    /// Looks at processes, mounts, loop devices and shim sockets of the whole
    /// host, and at the entries of `vm_dirs` (the VMs' base directories).
    #[must_use]
    pub fn scan(vm_dirs: &[PathBuf]) -> Self {
        let mut found = BTreeSet::new();
        for (pid, name) in vm_processes() {
            found.insert(format!("process {name} {pid}"));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines() {
            let target = line.split(' ').nth(4).unwrap_or_default();
            found.insert(format!("mount {target}"));
        }
        for entry in entries(Path::new("/sys/block")) {
            if let Ok(file) = fs::read_to_string(entry.join("loop/backing_file")) {
                found.insert(format!("loop device {} {}", entry.display(), file.trim()));
            }
        }
        for entry in entries(Path::new(SHIM_SOCKETS)) {
            found.insert(format!("socket {}", entry.display()));
        }
        for entry in vm_dirs.iter().flat_map(|dir| entries(dir)) {
            found.insert(format!("VM directory {}", entry.display()));
        }
        Self(found)
    }

    /// What is here but was not in `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Waits until every shim and VMM process that is not in `before` has ended, at most `bound`.
/// Returns when the last one was gone; `None` when some are still there.
#[must_use]
pub fn wait_for_vm_processes(before: &Leftovers, bound: Duration) -> Option<Instant> {
    let deadline = Instant::now() + bound;
    loop {
        let mut left = vm_processes();
        left.retain(|(pid, name)| !before.0.contains(&format!("process {name} {pid}")));
        let Some((pid, _)) = left.first() else {
            return Some(Instant::now());
        };
        let timeout = deadline.checked_duration_since(Instant::now())?;
        let Some(pid) = Pid::from_raw(*pid) else {
            continue;
        };
        // An error means that the process is gone by now.
        if let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) {
            let timeout = Timespec::try_from(timeout).ok();
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref());
        }
    }
}

/// Shim and VMM processes that live (zombies do not count: their parent has not looked yet).
#[must_use]
pub fn vm_processes() -> Vec<(i32, String)> {
    let mut found = Vec::new();
    for entry in entries(Path::new("/proc")) {
        let Some(pid) = entry
            .file_name()
            .and_then(|name| name.to_str()?.parse::<i32>().ok())
        else {
            continue;
        };
        let cmdline = fs::read(entry.join("cmdline")).unwrap_or_default();
        let program = cmdline.split(|b| *b == 0).next().unwrap_or_default();
        let program = String::from_utf8_lossy(program);
        let name = program.rsplit('/').next().unwrap_or_default();
        if VM_PROGRAMS.contains(&name) {
            found.push((pid, name.to_owned()));
        }
    }
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|dir| dir.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}
