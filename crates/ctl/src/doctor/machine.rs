//! The machine: rights, cgroups, tools, room.

use std::path::{Path, PathBuf};

use fc_config::Config;
use rustix::fs::{StatVfs, statvfs};

use super::Finding;

/// Free space below which a VM's disk soon finds none.
const LITTLE_MIB: u64 = 1024;

pub(super) fn check(config: &Config) -> Vec<Finding> {
    let mut findings = vec![user(), cgroups(Path::new("/sys/fs/cgroup"))];
    findings.extend(tools());
    findings.push(memory(config));
    findings.push(room("VMs' directory", &config.shim_base_dir));
    findings.push(room("image cache", &config.image_cache_dir));
    findings
}

fn user() -> Finding {
    const CHECK: &str = "user";
    if rustix::process::geteuid().is_root() {
        Finding::ok(CHECK, "root")
    } else {
        Finding::problem(
            CHECK,
            "not root: VMs need mounts, loop devices and the shims' sockets",
            "run containerd, firecracker-control and this program as root",
        )
    }
}

fn cgroups(root: &Path) -> Finding {
    const CHECK: &str = "cgroups";
    // The unified hierarchy has this file at its root; on hybrid hosts it is mounted one level below.
    let controllers = |dir: PathBuf| std::fs::read_to_string(dir.join("cgroup.controllers")).ok();
    if let Some(controllers) = controllers(root.to_owned()) {
        return Finding::ok(CHECK, format!("version 2 ({})", controllers.trim()));
    }
    if !root.join("memory").exists() {
        return Finding::note(
            CHECK,
            format!("no memory controller below {}", root.display()),
            "mount cgroups: jails limit VMMs with them",
        );
    }
    let hybrid = controllers(root.join("unified")).is_some();
    Finding::ok(
        CHECK,
        if hybrid {
            "version 1, with a unified hierarchy beside it"
        } else {
            "version 1"
        },
    )
}

fn tools() -> Vec<Finding> {
    [("mkfs.erofs", "erofs-utils"), ("mkfs.ext4", "e2fsprogs")]
        .into_iter()
        .map(
            |(program, package)| match fc_rootfs::mkfs::find(Path::new(program), package) {
                Ok(path) => Finding::ok("tools", path.display().to_string()),
                Err(_) => Finding::problem(
                    "tools",
                    format!(
                        "{program} is not installed; containers' root file systems are made with it"
                    ),
                    format!("install {package}"),
                ),
            },
        )
        .collect()
}

fn memory(config: &Config) -> Finding {
    const CHECK: &str = "memory";
    let available = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available_mib(&text));
    match available {
        None => Finding::note(CHECK, "not known", "see whether /proc is mounted"),
        Some(mib) if mib < u64::from(config.mem_size_mib) => Finding::problem(
            CHECK,
            format!("{mib} MiB available; a VM gets {}", config.mem_size_mib),
            "end something, or make mem_size_mib smaller",
        ),
        Some(mib) => Finding::ok(CHECK, format!("{mib} MiB available")),
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Space where a directory is, or will be made.
fn room(check: &'static str, dir: &Path) -> Finding {
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    match statvfs(there) {
        Err(error) => Finding::problem(
            check,
            format!("{} cannot be looked at: {error}", there.display()),
            "see what is mounted there",
        ),
        Ok(stat) => {
            let mib = free_mib(&stat);
            let found = format!("{}: {mib} MiB free", dir.display());
            if mib < LITTLE_MIB {
                Finding::note(
                    check,
                    found,
                    "make room: containers' disks grow there; `firecracker-ctl cache prune` and `gc` may help",
                )
            } else {
                Finding::ok(check, found)
            }
        }
    }
}

fn free_mib(stat: &StatVfs) -> u64 {
    stat.f_bavail.saturating_mul(stat.f_frsize) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn kinds_of_cgroups() {
        let root = tempfile::tempdir().expect("a directory");
        assert_eq!(cgroups(root.path()).level, Level::Note);
        std::fs::create_dir_all(root.path().join("memory")).expect("version 1");
        assert_eq!(cgroups(root.path()).found, "version 1");
        std::fs::create_dir_all(root.path().join("unified")).expect("hybrid");
        std::fs::write(root.path().join("unified/cgroup.controllers"), "").expect("hybrid");
        assert!(cgroups(root.path()).found.contains("beside"));
        std::fs::write(root.path().join("cgroup.controllers"), "cpu memory\n").expect("version 2");
        assert_eq!(cgroups(root.path()).found, "version 2 (cpu memory)");
    }

    #[test]
    fn memory_that_is_available() {
        let text = "MemTotal: 1 kB\nMemAvailable:   2097152 kB\n";
        assert_eq!(available_mib(text), Some(2048));
        assert_eq!(available_mib(""), None);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_has_room_too() {
        let finding = room("x", Path::new("/nonexistent/a/b"));
        assert_ne!(finding.level, Level::Problem, "{finding:?}");
    }
}
