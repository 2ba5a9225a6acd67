//! Bounds the files that the VMM writes: it holds images of drives open, and could otherwise make them longer until
//! the host's disk is full.
//!
//! The limit (`RLIMIT_FSIZE`) is the length of the longest one that it was given to write. It begins when the guest
//! has started, because the guest's memory may be a file too, and grows with what is exposed later.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, prlimit};

use crate::cgroup::Hierarchies;
use crate::member::Member;

/// Room for stub drives, in bytes.
const LEAST: u64 = 1 << 20;

/// The limit on the processes of one control group.
#[derive(Debug)]
pub(crate) struct FileLimit {
    hierarchies: Hierarchies,
    cgroup: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    longest: u64,
    /// Whether the guest has started.
    begun: bool,
}

impl FileLimit {
    pub(crate) fn new(hierarchies: Hierarchies, cgroup: &str) -> Self {
        Self {
            hierarchies,
            cgroup: cgroup.to_owned(),
            state: Mutex::new(State {
                longest: LEAST,
                begun: false,
            }),
        }
    }

    /// Lets the VMM write a file of `length` bytes.
    pub(crate) fn allow(&self, length: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if length > state.longest {
            state.longest = length;
            if state.begun {
                return self.apply(length);
            }
        }
        Ok(())
    }

    /// The limit holds from now on.
    pub(crate) fn begin(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.begun = true;
        self.apply(state.longest)
    }

    fn apply(&self, length: u64) -> io::Result<()> {
        let limit = Rlimit {
            current: Some(length),
            maximum: Some(length),
        };
        let mut done = BTreeSet::new();
        loop {
            // A process may have been made by one that had the old limit still.
            let members = self.hierarchies.members(&self.cgroup, &done)?;
            if members.is_empty() {
                return Ok(());
            }
            for member in members {
                match set(&member, limit) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        // A host whose root has less than all capabilities: the VM is no worse off than the host.
                        tracing::warn!(
                            "Without CAP_SYS_RESOURCE a VMM can make the images of its drives longer"
                        );
                        return Ok(());
                    }
                    other => other?,
                }
                done.insert(member.pid().as_raw_pid());
            }
        }
    }
}

/// Limits a process, and none that has got its number. One that has ended is no error.
fn set(member: &Member, limit: Rlimit) -> io::Result<()> {
    // prlimit(2) knows numbers only.
    let before = match prlimit(Some(member.pid()), Resource::Fsize, limit) {
        Ok(before) => before,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if member.ends_within(Duration::ZERO)? {
        // Then another process may have been limited, which gets its own limit back.
        match prlimit(Some(member.pid()), Resource::Fsize, before) {
            Ok(_) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_of(pid: u32) -> String {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max file size"));
        line.unwrap()["Max file size".len()..].trim().to_owned()
    }

    #[test]
    fn the_limit_begins_with_the_longest_file() {
        let directory = tempfile::tempdir().unwrap();
        let group = directory.path().join("p/vm");
        std::fs::create_dir_all(&group).unwrap();
        // Its own process, as the user that it is itself: such a one it may always limit.
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        let limit = FileLimit::new(Hierarchies::at(directory.path()), "/p/vm");
        let before = limit_of(child.id());
        limit.allow(5 << 20).unwrap();
        limit.allow(2 << 20).unwrap();
        assert_eq!(limit_of(child.id()), before);
        limit.begin().unwrap();
        let words: Vec<_> = limit_of(child.id())
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        assert_eq!(words[..2], ["5242880", "5242880"]);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_has_ended_is_not_limited() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let member = Member::open(pid).unwrap().unwrap();
        child.kill().unwrap();
        // Its number stays its own until it is waited for, so that the limit can be looked at.
        assert!(member.ends_within(Duration::from_secs(10)).unwrap());
        let before = limit_of(child.id());
        let limit = Rlimit {
            current: Some(1),
            maximum: rustix::process::getrlimit(Resource::Fsize).maximum,
        };
        set(&member, limit).unwrap();
        assert_eq!(limit_of(child.id()), before);
        child.wait().unwrap();
        set(&member, limit).unwrap();
    }
}
