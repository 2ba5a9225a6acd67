//! flock(2) on a file that a VM gets.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::{Access, HostFileError};

/// How long a lock that was given up can seem to be held: a process that this one is just starting has a copy of
/// its descriptor until its program runs, which nothing tells.
const COPY_BOUND: Duration = Duration::from_millis(200);
/// How often it is looked for.
const COPY_PAUSE: Duration = Duration::from_millis(2);

/// Locks the file that was opened at `path`, until its last descriptor is closed.
pub(crate) fn take(path: &Path, file: &File, access: Access) -> Result<(), HostFileError> {
    let operation = match access {
        Access::Read => FlockOperation::NonBlockingLockShared,
        Access::Write => FlockOperation::NonBlockingLockExclusive,
    };
    let begin = Instant::now();
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if begin.elapsed() < COPY_BOUND => {
                std::thread::sleep(COPY_PAUSE);
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(HostFileError::InUse {
                    path: path.to_owned(),
                    access,
                });
            }
            Err(error) => {
                return Err(HostFileError::Lock {
                    path: path.to_owned(),
                    source: error.into(),
                });
            }
        }
    }
}
