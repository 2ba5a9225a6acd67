//! Tells whether an OCI runtime is just making the container, also when whoever started it was killed.
//!
//! The runtime inherits a descriptor with a shared flock(2), which goes when its last process has ended or become
//! the VMM. Cleaning up earlier would leave what it makes after that.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::member::{Member, readable_within};

/// The lock, to be inherited.
pub(crate) fn hold(state: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false);
    let file = file.open(path(state))?;
    flock(&file, FlockOperation::LockShared)?;
    Ok(file)
}

/// Waits until nobody holds the lock; answers whether that is so within `bound`.
pub(crate) fn wait(state: &Path, bound: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + bound;
    let path = path(state);
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    let closed = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let flags = WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE;
    // Before the first look at the lock, so that no close is missed.
    inotify::add_watch(&closed, &path, flags)?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
        let rest = deadline.saturating_duration_since(Instant::now());
        if !readable_within(&closed, rest)? {
            return Ok(false);
        }
        let mut events = [0; 4096];
        // What it was does not matter.
        let _ = rustix::io::read(&closed, &mut events);
    }
}

/// Kills whoever has the lock's file open. A runtime that was killed may leave a process that waits for it without end,
/// and is in no control group yet. Processes with this one's program stay: they are about to start another one, and
/// let go of the file then.
pub(crate) fn kill_holders(state: &Path) -> io::Result<()> {
    let lock = match path(state).metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let ours = fs::metadata("/proc/self/exe")?;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // By a descriptor, so that what is looked at is what is killed.
        let Some(process) = Member::open(pid)? else {
            continue;
        };
        let of_process = Path::new("/proc").join(&name);
        let program = of_process.join("exe").metadata();
        if program.is_ok_and(|program| !same(&program, &ours)) && holds(&of_process, &lock) {
            process.kill()?;
        }
    }
    Ok(())
}

/// Whether a process has a file open; one that has ended has none.
fn holds(of_process: &Path, file: &fs::Metadata) -> bool {
    let Ok(descriptors) = fs::read_dir(of_process.join("fd")) else {
        return false;
    };
    let mut open = descriptors.filter_map(|entry| entry.ok()?.path().metadata().ok());
    open.any(|open| same(&open, file))
}

fn same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn path(state: &Path) -> PathBuf {
    state.join("lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_the_last_holder() {
        let state = tempfile::tempdir().unwrap();
        assert!(wait(state.path(), Duration::ZERO).unwrap());
        let (one, two) = (hold(state.path()).unwrap(), hold(state.path()).unwrap());
        let copy = two.try_clone().unwrap();
        drop((one, two));
        assert!(!wait(state.path(), Duration::from_millis(10)).unwrap());
        let path = state.path().to_owned();
        let waiter = std::thread::spawn(move || wait(&path, Duration::from_secs(10)).unwrap());
        drop(copy);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn kills_other_programs_that_hold_it() {
        use std::os::unix::process::CommandExt;
        use std::process::Command;
        let state = tempfile::tempdir().unwrap();
        kill_holders(state.path()).unwrap();
        let ours = hold(state.path()).unwrap();
        let mut holder = {
            let theirs = hold(state.path()).unwrap();
            let inherit = move || {
                Ok(rustix::io::fcntl_setfd(
                    &theirs,
                    rustix::io::FdFlags::empty(),
                )?)
            };
            let mut command = Command::new("sleep");
            // SAFETY: between fork and exec only a system call is made and nothing is allocated.
            let command = unsafe { command.arg("60").pre_exec(inherit) };
            command.spawn().unwrap()
        };
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        kill_holders(state.path()).unwrap();
        assert!(!holder.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
        // This process, which lives on, still holds it.
        assert!(!wait(state.path(), Duration::ZERO).unwrap());
        drop(ours);
        assert!(wait(state.path(), Duration::from_secs(10)).unwrap());
    }
}
