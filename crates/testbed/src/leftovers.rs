//! What a run left on the host: processes, mounts, loop devices, sockets and
//! files that are there now and belong to it. Other VMs of the host do not count.

use std::fs;
use std::os::unix::net::UnixStream;
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

/// A directory below which everything of a run lives: a private containerd with
/// its state, and the VMs' base directory.
#[derive(Debug, Clone)]
pub struct Scope {
    root: PathBuf,
    sockets_before: Vec<PathBuf>,
}

/// A process of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmProcess {
    /// Its process id.
    pub pid: i32,
    /// The program's name.
    pub name: String,
    /// Its working directory, which is the VM's directory.
    pub cwd: PathBuf,
}

impl Scope {
    /// The scope of a run that is about to begin.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            sockets_before: entries(Path::new(SHIM_SOCKETS)),
        }
    }

    /// What is there now, one line each; `vm_dirs` are base directories of VM directories.
    #[must_use]
    pub fn leftovers(&self, vm_dirs: &[PathBuf]) -> Vec<String> {
        let mut found: Vec<String> = self
            .processes()
            .into_iter()
            .map(|process| format!("process {} {}", process.name, process.pid))
            .collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        found.extend(
            targets
                .filter(|target| Path::new(target).starts_with(&self.root))
                .map(|target| format!("mount {target}")),
        );
        for entry in entries(Path::new("/sys/block")) {
            let file = fs::read_to_string(entry.join("loop/backing_file")).unwrap_or_default();
            if Path::new(file.trim()).starts_with(&self.root) {
                found.push(format!("loop device {} {}", entry.display(), file.trim()));
            }
        }
        // A socket that answers belongs to a VM that lives, and its process is listed above if it is ours.
        found.extend(
            entries(Path::new(SHIM_SOCKETS))
                .into_iter()
                .filter(|socket| !self.sockets_before.contains(socket))
                .filter(|socket| UnixStream::connect(socket).is_err())
                .map(|socket| format!("socket {}", socket.display())),
        );
        let dirs = vm_dirs.iter().flat_map(|dir| entries(dir));
        found.extend(dirs.map(|entry| format!("VM directory {}", entry.display())));
        found
    }

    /// Shim and VMM processes that live (zombies have no working directory any more).
    #[must_use]
    pub fn processes(&self) -> Vec<VmProcess> {
        let mut found = Vec::new();
        for entry in entries(Path::new("/proc")) {
            let pid = entry
                .file_name()
                .and_then(|name| name.to_str()?.parse::<i32>().ok());
            let (Some(pid), Ok(cwd)) = (pid, fs::read_link(entry.join("cwd"))) else {
                continue;
            };
            let cmdline = fs::read(entry.join("cmdline")).unwrap_or_default();
            let program = cmdline.split(|b| *b == 0).next().unwrap_or_default();
            let program = String::from_utf8_lossy(program);
            let name = program.rsplit('/').next().unwrap_or_default();
            if cwd.starts_with(&self.root) && VM_PROGRAMS.contains(&name) {
                let name = name.to_owned();
                found.push(VmProcess { pid, name, cwd });
            }
        }
        found
    }

    /// Waits until every shim and VMM process has ended, at most `bound`; false when some are still there.
    #[must_use]
    pub fn wait_for_processes(&self, bound: Duration) -> bool {
        let deadline = Instant::now() + bound;
        while let Some(process) = self.processes().first() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            wait_for_end(process.pid, left);
        }
        true
    }
}

/// Waits until a process has ended, at most `bound`.
pub fn wait_for_end(pid: i32, bound: Duration) {
    // Without a descriptor for it, the process has ended already.
    if let Some(fd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
        let timeout = Timespec::try_from(bound).ok();
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref());
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|dir| dir.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}
