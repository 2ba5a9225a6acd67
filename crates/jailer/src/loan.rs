//! Files that change their owner while a jailed VMM uses them, on file systems without id-mapped mounts.
//!
//! A file is lent to one jail at a time: a second one would take the first one's user for the former owner, and
//! the file would stay with that user in the end.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Gid, Mode, OFlags, Uid, chownat, flock, open};
use rustix::io::Errno;

use crate::User;
use crate::file_mount::ExposeError;
use crate::record::{self, Journal, Owner};
use crate::undo::UndoError;

/// Lends files to the user of one jail.
#[derive(Debug)]
pub(crate) struct Lender {
    user: User,
    journal: Arc<Journal>,
}

impl Lender {
    pub(crate) fn new(user: User, journal: Arc<Journal>) -> Self {
        Self { user, journal }
    }

    /// Makes the jail's user the owner of `file`, which was opened by `path`. The former owner is recorded first.
    pub(crate) fn lend(&self, path: &Path, file: &File) -> Result<(), ExposeError> {
        let error = |source| ExposeError::Owner {
            path: path.to_owned(),
            source,
        };
        // All jails of a base directory lend one after the other. A lock on the file itself would meet those that
        // its other users hold.
        let base = self.journal.base();
        let lock = File::open(base).map_err(error)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|errno| error(errno.into()))?;
        let metadata = file.metadata().map_err(error)?;
        let owner = Owner {
            path: current_path(file).map_err(error)?,
            device: metadata.dev(),
            inode: metadata.ino(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            lent_to: self.user.uid(),
        };
        if let Some(borrower) = borrower(base, &owner, self.journal.dir()).map_err(error)? {
            return Err(ExposeError::Lent {
                path: path.to_owned(),
                borrower,
            });
        }
        self.journal.change(|record| record.owners.push(owner))?;
        // Through the descriptor: the file that was looked at, whatever its path leads to now.
        give(file, self.user.uid(), self.user.gid()).map_err(error)
    }

    /// Gives `file` back if it was lent, wherever it was moved meanwhile.
    pub(crate) fn take_back(&self, file: &File) -> Result<(), TakeBackError> {
        let metadata = file.metadata().map_err(TakeBackError::Look)?;
        let same = |owner: &Owner| (owner.device, owner.inode) == (metadata.dev(), metadata.ino());
        let record = self.journal.record();
        for owner in record.owners.iter().filter(|owner| same(owner)) {
            give_back_open(owner, file).map_err(|source| owner_error(owner, source))?;
        }
        let forget = |record: &mut record::Record| record.owners.retain(|owner| !same(owner));
        Ok(self.journal.change(forget)?)
    }
}

/// Why a file keeps its new owner, or is recorded to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeBackError {
    /// It has it still.
    #[error(transparent)]
    Owner(#[from] UndoError),
    /// Nobody knows which file it is.
    #[error("Cannot look at a file that is to be given back to its owner")]
    Look(#[source] io::Error),
    /// It has not, but the record says so.
    #[error(transparent)]
    Record(#[from] record::RecordError),
}

/// The directory of a VM other than `own` whose jail has been lent the file.
fn borrower(base: &Path, file: &Owner, own: &Path) -> io::Result<Option<PathBuf>> {
    for entry in base.read_dir()? {
        let dir = entry?.path();
        if dir == own {
            continue;
        }
        // One that cannot be read lends nothing: what has been lent is in a complete record.
        let Ok(Some(record)) = record::load(&dir) else {
            continue;
        };
        let same = |owner: &Owner| (owner.device, owner.inode) == (file.device, file.inode);
        if record.owners.iter().any(same) {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

/// Gives a file back to its former owner. Another file in its place, one that has got another owner meanwhile, or
/// none, is left alone.
pub(crate) fn give_back(owner: &Owner) -> Result<(), UndoError> {
    let give_back = || -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match open(&owner.path, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => File::from(other?),
        };
        give_back_open(owner, &file)
    };
    give_back().map_err(|source| owner_error(owner, source))
}

fn give_back_open(owner: &Owner, file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    let found = (metadata.dev(), metadata.ino(), metadata.uid());
    if found == (owner.device, owner.inode, owner.lent_to) {
        give(file, owner.uid, owner.gid)?;
    }
    Ok(())
}

fn owner_error(owner: &Owner, source: io::Error) -> UndoError {
    UndoError::Owner {
        path: owner.path.clone(),
        uid: owner.uid,
        gid: owner.gid,
        source,
    }
}

/// Where an open file is now, without links.
fn current_path(file: &File) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn give(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(chownat(
        file,
        "",
        Some(uid),
        Some(gid),
        AtFlags::EMPTY_PATH,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{chown, symlink};

    /// A file of `lent_to`, and the record of who had it before.
    fn lent(dir: &Path, lent_to: u32) -> Owner {
        let path = dir.canonicalize().unwrap().join("lent");
        fs::write(&path, "").unwrap();
        chown(&path, Some(lent_to), Some(lent_to)).unwrap();
        let metadata = path.metadata().unwrap();
        Owner {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
            uid: 7,
            gid: 8,
            lent_to,
        }
    }

    fn owner_of(path: &Path) -> (u32, u32) {
        let metadata = path.metadata().unwrap();
        (metadata.uid(), metadata.gid())
    }

    fn root() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            println!("SKIPPED: needs root");
        }
        root
    }

    #[test]
    fn only_the_lent_file_is_given_back() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let owner = lent(dir.path(), 5000);
        let wrong = [
            Owner {
                device: owner.device + 1,
                ..owner.clone()
            },
            Owner {
                inode: owner.inode + 1,
                ..owner.clone()
            },
            Owner {
                lent_to: 5001,
                ..owner.clone()
            },
        ];
        for wrong in wrong {
            give_back(&wrong).unwrap();
            assert_eq!(owner_of(&owner.path), (5000, 5000), "{wrong:?}");
        }
        give_back(&owner).unwrap();
        assert_eq!(owner_of(&owner.path), (7, 8));
        fs::remove_file(&owner.path).unwrap();
        give_back(&owner).unwrap();
    }

    #[test]
    fn a_link_in_the_file_s_place_is_not_followed() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let owner = lent(dir.path(), 5000);
        let moved = owner.path.with_file_name("moved");
        fs::rename(&owner.path, &moved).unwrap();
        symlink(&moved, &owner.path).unwrap();
        give_back(&owner).unwrap();
        assert_eq!(owner_of(&moved), (5000, 5000));
    }
}
