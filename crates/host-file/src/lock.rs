//! flock(2) on a file that a VM gets, and patience with those who seem to use it.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{self, Errno};

use crate::{Access, HostFileError};

/// How long a file that was given up can seem to be in use: a process that this one is just starting has a copy of
/// its descriptor until its program runs, which nothing tells.
const COPY_BOUND: Duration = Duration::from_secs(1);
/// How often it is looked for.
const COPY_PAUSE: Duration = Duration::from_millis(2);

/// Locks the file that was opened at `path`, until its last descriptor is closed.
pub(crate) fn take(path: &Path, file: &File, access: Access) -> Result<(), HostFileError> {
    let operation = match access {
        Access::Read => FlockOperation::NonBlockingLockShared,
        Access::Write => FlockOperation::NonBlockingLockExclusive,
    };
    match patiently(Errno::WOULDBLOCK, || flock(file, operation)) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(HostFileError::InUse {
            path: path.to_owned(),
            access,
        }),
        Err(error) => Err(HostFileError::Lock {
            path: path.to_owned(),
            source: error.into(),
        }),
    }
}

/// What `attempt` comes to, tried again for a while as long as that is `in_use`.
pub(crate) fn patiently<T>(
    in_use: Errno,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let begin = Instant::now();
    loop {
        match attempt() {
            Err(error) if error == in_use && begin.elapsed() < COPY_BOUND => {
                thread::sleep(COPY_PAUSE);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_use_is_tried_again() {
        let after = |errors: &[Errno]| {
            let mut errors = errors.iter();
            let result = patiently(Errno::BUSY, || errors.next().map_or(Ok(()), |e| Err(*e)));
            (result, errors.count())
        };
        assert_eq!(after(&[Errno::BUSY, Errno::BUSY]), (Ok(()), 0));
        let fails = [Errno::BUSY, Errno::ACCESS, Errno::BUSY];
        assert_eq!(after(&fails), (Err(Errno::ACCESS), 1));
        let mut tries = 0;
        let never = patiently(Errno::BUSY, || {
            tries += 1;
            Err::<(), _>(Errno::BUSY)
        });
        assert_eq!(never, Err(Errno::BUSY));
        assert!(tries > 1);
    }
}
