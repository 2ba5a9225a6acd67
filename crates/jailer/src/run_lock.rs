//! Tells whether an OCI runtime is just making the container, also when whoever started it was killed.
//!
//! The runtime inherits a descriptor with a shared flock(2), which goes when its last process has ended or become
//! the VMM. Cleaning up earlier would leave what it makes after that.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

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
        let rest = Timespec::try_from(rest).map_err(|_| io::ErrorKind::InvalidInput)?;
        if poll(&mut [PollFd::new(&closed, PollFlags::IN)], Some(&rest))? == 0 {
            return Ok(false);
        }
        let mut events = [0; 4096];
        // What it was does not matter.
        let _ = rustix::io::read(&closed, &mut events);
    }
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
}
