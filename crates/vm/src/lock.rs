//! The lock that makes a VM unique.
//!
//! Two flocks with different lives. The *shim lock*, on the file `lock` in the
//! VM's directory, is held from the moment somebody starts the VM's shim until
//! that shim's process ends: the starter takes it and the shim inherits the
//! file. The *start lock*, on the directory itself, is held only by a starter
//! while it decides and spawns, so that a second one never sees a half-started
//! shim: once it has the start lock, a held shim lock means bound sockets.

use std::fs::{File, OpenOptions, create_dir_all};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::dir::{LOCK, VmDir};

/// Time between two looks at a lock that nobody should hold; nothing tells when a copy of it goes.
pub(crate) const COPY_INTERVAL: Duration = Duration::from_millis(1);

/// Why a VM's lock could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("Cannot lock the VM's directory {}", path.display())]
pub struct LockError {
    path: PathBuf,
    source: io::Error,
}

impl LockError {
    /// Whether there is no such directory.
    pub(crate) fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// The start lock; released on drop.
#[derive(Debug)]
pub struct StartLock {
    dir: VmDir,
    dir_fd: File,
}

impl Drop for StartLock {
    fn drop(&mut self) {
        // Closing it is not enough: a process that another thread is just starting has a copy until its program
        // runs. This can only fail for a descriptor that is none.
        let _ = flock(&self.dir_fd, FlockOperation::Unlock);
    }
}

/// The shim lock; released when every process that has the file closed it.
#[derive(Debug)]
pub struct ShimLock {
    file: File,
}

impl StartLock {
    /// Creates the VM's directory (mode 0700, parents too) if needed and takes its start
    /// lock, waiting for another starter to finish.
    ///
    /// # Errors
    /// When the directory cannot be created or locked.
    pub fn take(dir: &VmDir) -> Result<Self, LockError> {
        let error = |source| LockError {
            path: dir.path().to_owned(),
            source,
        };
        if let Some(base) = dir.path().parent() {
            create_dir_all(base).map_err(error)?;
        }
        loop {
            match std::fs::DirBuilder::new().mode(0o700).create(dir.path()) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(error(e)),
                _ => {}
            }
            // A shim that ended meanwhile may have removed the directory.
            if let Some(lock) = Self::wait(dir).map_err(error)? {
                return Ok(lock);
            }
        }
    }

    /// Like [`StartLock::take`], but `None` when the VM has no directory, or none any more when
    /// the lock is free; creates nothing.
    ///
    /// # Errors
    /// When the directory cannot be locked.
    pub fn take_existing(dir: &VmDir) -> Result<Option<Self>, LockError> {
        Self::wait(dir).map_err(|source| LockError {
            path: dir.path().to_owned(),
            source,
        })
    }

    /// Waits for the lock of the directory that is there now, or that was made in its place
    /// meanwhile; `None` when there is none.
    fn wait(dir: &VmDir) -> io::Result<Option<Self>> {
        loop {
            let fd = match File::open(dir.path()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other?,
            };
            flock(&fd, FlockOperation::LockExclusive)?;
            if same_file(&fd, dir.path())? {
                return Ok(Some(Self {
                    dir: dir.clone(),
                    dir_fd: fd,
                }));
            }
        }
    }

    /// Locks the directory of a VM only for a look, beside others that look; `None` when a
    /// starter, or who cleans up, is at work there. Creates nothing.
    ///
    /// # Errors
    /// When the directory is not there, or cannot be locked.
    pub(crate) fn look(dir: &VmDir) -> Result<Option<Self>, LockError> {
        let error = |source| LockError {
            path: dir.path().to_owned(),
            source,
        };
        loop {
            let fd = File::open(dir.path()).map_err(error)?;
            match flock(&fd, FlockOperation::NonBlockingLockShared) {
                Ok(()) if same_file(&fd, dir.path()).map_err(error)? => {
                    return Ok(Some(Self {
                        dir: dir.clone(),
                        dir_fd: fd,
                    }));
                }
                // Removed meanwhile, and perhaps made again.
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(error(e.into())),
            }
        }
    }

    /// Whether somebody holds the shim lock. For who only looks: takes nothing.
    ///
    /// # Errors
    /// When the lock file is there but cannot be asked.
    pub(crate) fn shim_lock_held(&self) -> Result<bool, LockError> {
        let path = self.dir.join(LOCK);
        let held = || {
            let file = match File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                other => other?,
            };
            // Shared, because others may be looking. It goes again at once: a copy of the file, in a process that is
            // just starting, could keep it.
            match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => {
                    flock(&file, FlockOperation::Unlock)?;
                    Ok(false)
                }
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
                Err(e) => Err(e.into()),
            }
        };
        held().map_err(|source| LockError {
            path: self.dir.path().to_owned(),
            source,
        })
    }

    /// Takes the shim lock, or answers `None` at once when a shim holds it.
    ///
    /// # Errors
    /// When the lock file cannot be made or locked.
    pub fn try_shim_lock(&self) -> Result<Option<ShimLock>, LockError> {
        let path = self.dir.join(LOCK);
        let error = |source| LockError {
            path: path.clone(),
            source,
        };
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(error)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(error(e.into())),
            }
            if same_file(&file, &path).map_err(error)? {
                return Ok(Some(ShimLock { file }));
            }
        }
    }

    /// Process id of the shim, which it had written into the file before it became the shim.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        std::fs::read_to_string(self.dir.join(LOCK))
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}

impl ShimLock {
    /// Takes over a lock file that was inherited; it stays locked as long as `file` is open.
    #[must_use]
    pub fn inherited(file: File) -> Self {
        Self { file }
    }

    /// The locked file, to pass it on to a child.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Writes a shim's process id into its locked file, for whoever finds it locked. Allocates nothing:
/// the new process itself does it between fork and exec.
pub(crate) fn write_holder(file: &File, pid: u32) -> io::Result<()> {
    let mut line = io::Cursor::new([0; 16]);
    writeln!(line, "{pid}")?;
    let length = usize::try_from(line.position()).unwrap_or_default();
    rustix::fs::ftruncate(file, 0)?;
    rustix::io::pwrite(file, &line.get_ref()[..length], 0)?;
    Ok(())
}

/// Whether `path` still names the open file.
fn same_file(file: &File, path: &std::path::Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, VmDir) {
        let base = tempfile::tempdir().unwrap();
        let dir = VmDir::new(&base.path().join("a/b"), "ns", "vm").unwrap();
        (base, dir)
    }

    #[test]
    fn one_shim_at_a_time() {
        let (_base, dir) = dir();
        assert!(StartLock::take_existing(&dir).unwrap().is_none());
        let start = StartLock::take(&dir).unwrap();
        assert!(!start.shim_lock_held().unwrap());
        let shim = start.try_shim_lock().unwrap().expect("free");
        write_holder(shim.file(), 4711).unwrap();
        assert!(start.try_shim_lock().unwrap().is_none());
        assert!(start.shim_lock_held().unwrap());
        assert_eq!(start.holder(), Some(4711));
        drop(shim);
        // A process that another test is just starting has a copy until its program runs. The kernel wakes who waits
        // for the lock when the last copy is gone.
        let waiting = File::open(dir.join(LOCK)).unwrap();
        flock(&waiting, FlockOperation::LockExclusive).unwrap();
        flock(&waiting, FlockOperation::Unlock).unwrap();
        let shim = start.try_shim_lock().unwrap().expect("free again");
        write_holder(shim.file(), 1).unwrap();
        assert_eq!(start.holder(), Some(1), "a shorter number leaves no digits");
    }

    #[test]
    fn those_who_look_do_not_disturb() {
        let (_base, dir) = dir();
        assert!(StartLock::look(&dir).is_err());
        let start = StartLock::take(&dir).unwrap();
        assert!(StartLock::look(&dir).unwrap().is_none());
        drop(start);
        let first = StartLock::look(&dir).unwrap().expect("nobody at work");
        let second = StartLock::look(&dir).unwrap().expect("beside the first");
        assert!(!first.shim_lock_held().unwrap() && !second.shim_lock_held().unwrap());
        assert!(!dir.join(LOCK).exists());
    }

    #[test]
    fn a_lock_of_a_removed_directory_is_worth_nothing() {
        let (_base, dir) = dir();
        let first = StartLock::take(&dir).unwrap();
        let waiter = std::thread::spawn({
            let dir = dir.clone();
            move || {
                let lock = StartLock::take(&dir).unwrap();
                lock.try_shim_lock().unwrap().is_some()
            }
        });
        std::fs::remove_dir_all(dir.path()).unwrap();
        drop(first);
        assert!(waiter.join().unwrap());
        assert!(dir.path().is_dir());
    }

    #[test]
    fn who_cleans_up_makes_no_directory() {
        let (_base, dir) = dir();
        let first = StartLock::take(&dir).unwrap();
        let waiting = File::open(dir.path()).unwrap();
        let waiter = std::thread::spawn({
            let dir = dir.clone();
            move || StartLock::take_existing(&dir).unwrap().is_some()
        });
        // Until it waits for the lock: the kernel lists it behind the one that is held.
        let inode = format!(":{} ", waiting.metadata().unwrap().ino());
        let waits = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
        while !std::fs::read_to_string("/proc/locks")
            .unwrap()
            .lines()
            .any(waits)
        {
            std::thread::yield_now();
        }
        std::fs::remove_dir_all(dir.path()).unwrap();
        drop(first);
        assert!(!waiter.join().unwrap());
        assert!(!dir.path().exists());
    }
}
