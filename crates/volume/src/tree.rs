//! Copies a file or directory of the host, whatever others do to it meanwhile.
//!
//! The copy starts from a clone of the mount (open_tree(2)), which shows what a bind mount would. From
//! there on nothing is reached by a path: every entry is opened beneath its directory without following
//! links, looked at, and only then read, so that an entry that turns into a link or a device between two
//! steps changes nothing.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat,
    chownat, fstat, fstatfs, getxattr, listxattr, openat, readlinkat, setxattr, utimensat,
};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::budget::{Budget, Measure, cost};
use crate::staging::fd_path;
use crate::{Refusal, VolumeError};

/// Most directories inside one another.
pub(crate) const MAX_DEPTH: usize = 128;
/// How often a directory that changes while it is copied is copied anew.
const ATTEMPTS: usize = 3;

/// Filesystems that show a kernel's state, by their magic numbers (`linux/magic.h`).
const KERNEL_FILESYSTEMS: [(u64, &str); 9] = [
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x1cd1, "devpts"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0xcafe_4a11, "bpf"),
];

/// What is to be copied.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    /// For errors: where the mount is in the container.
    destination: &'a str,
    root: OwnedFd,
    path: PathBuf,
}

/// What one attempt to copy a tree keeps.
struct Account<'a> {
    budget: &'a mut Budget,
    /// Where files with several names were copied to.
    links: HashMap<Identity, PathBuf>,
}

/// One file, whatever its name. With the time of its last change: a file that is removed and another that gets
/// its inode while the tree is copied are two.
#[derive(PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(stat: &Stat) -> Identity {
        Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
            changed: (stat.st_ctime, stat.st_ctime_nsec.try_into().unwrap_or(0)),
        }
    }
}

impl<'a> Tree<'a> {
    /// The file or directory at `source`, with what is mounted below if `recursive`.
    pub(crate) fn open(
        destination: &'a str,
        source: &Path,
        recursive: bool,
    ) -> Result<Tree<'a>, VolumeError> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let root = open_tree(CWD, source, flags).map_err(|error| VolumeError::Source {
            destination: destination.to_owned(),
            action: "open",
            path: source.to_owned(),
            error: error.into(),
        })?;
        Ok(Tree {
            destination,
            root,
            path: source.to_owned(),
        })
    }

    /// Copies it to `to`, which does not exist, within `budget`.
    pub(crate) fn copy(&self, to: &Path, budget: &mut Budget) -> Result<(), VolumeError> {
        for attempt in 1.. {
            let before = self.stat(&self.root, &self.path)?;
            let start = *budget;
            let mut account = Account {
                budget,
                links: HashMap::new(),
            };
            let copied = self.copy_entry(&self.root, &self.path, to, 0, &mut account);
            if let Err(VolumeError::Refused {
                why: Refusal::TooLarge { .. },
                ..
            }) = copied
            {
                return Err(self.refused(self.too_large(&start)));
            }
            copied?;
            let after = self.stat(&self.root, &self.path)?;
            if is_unchanged(&before, &after) {
                break;
            }
            if attempt == ATTEMPTS {
                tracing::warn!(
                    source = %self.path.display(),
                    "a directory that is copied into a VM keeps changing; the copy may mix old and new"
                );
                break;
            }
            *budget = start;
            remove(to).map_err(|error| self.failed("remove", &self.path, error))?;
        }
        Ok(())
    }

    fn copy_entry(
        &self,
        entry: &OwnedFd,
        path: &Path,
        to: &Path,
        depth: usize,
        account: &mut Account<'_>,
    ) -> Result<(), VolumeError> {
        let stat = self.stat(entry, path)?;
        let failed = |error| self.failed("copy", path, error);
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        let special = |what| {
            Err(self.refused(Refusal::Special {
                path: path.to_owned(),
                what,
            }))
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                self.check_filesystem(entry, path)?;
                let identity = Identity::of(&stat);
                if let Some(first) = account.links.get(&identity) {
                    self.take(account.budget, cost(0))?;
                    return fs::hard_link(first, to).map_err(failed);
                }
                self.take(account.budget, cost(length))?;
                copy_file(entry, to, length).map_err(failed)?;
                if stat.st_nlink > 1 {
                    account.links.insert(identity, to.to_owned());
                }
            }
            FileType::Directory => {
                self.check_filesystem(entry, path)?;
                self.take(account.budget, cost(0))?;
                self.copy_directory(entry, path, to, depth, account)?;
            }
            FileType::Symlink => {
                self.take(account.budget, cost(0))?;
                let target =
                    readlinkat(entry, c"", Vec::new()).map_err(|error| failed(error.into()))?;
                symlink(OsStr::from_bytes(target.as_bytes()), to).map_err(failed)?;
            }
            FileType::BlockDevice if depth == 0 => {
                return Err(self.refused(Refusal::BlockDevice(path.to_owned())));
            }
            FileType::BlockDevice => return special("block device"),
            FileType::CharacterDevice => return special("character device"),
            FileType::Fifo => return special("FIFO"),
            FileType::Socket => return special("socket"),
            FileType::Unknown => return special("file of an unknown kind"),
        }
        copy_attributes(entry, &stat, to).map_err(failed)
    }

    fn copy_directory(
        &self,
        dir: &OwnedFd,
        path: &Path,
        to: &Path,
        depth: usize,
        account: &mut Account<'_>,
    ) -> Result<(), VolumeError> {
        if depth == MAX_DEPTH {
            return Err(self.refused(Refusal::TooDeep {
                path: path.to_owned(),
            }));
        }
        fs::create_dir(to).map_err(|error| self.failed("copy", path, error))?;
        for name in names(dir).map_err(|error| self.failed("list", path, error))? {
            let name = OsStr::from_bytes(name.as_bytes());
            let path = path.join(name);
            match open_entry(dir, name) {
                Ok(entry) => self.copy_entry(&entry, &path, &to.join(name), depth + 1, account)?,
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.failed("open", &path, error)),
            }
        }
        Ok(())
    }

    fn check_filesystem(&self, entry: &OwnedFd, path: &Path) -> Result<(), VolumeError> {
        let stat = fstatfs(entry).map_err(|error| self.failed("look at", path, error.into()))?;
        // The field is signed on some platforms; magic numbers have 32 bits.
        let magic = u64::try_from(stat.f_type & 0xffff_ffff).unwrap_or(0);
        match KERNEL_FILESYSTEMS.iter().find(|(known, _)| *known == magic) {
            None => Ok(()),
            Some((_, fstype)) => Err(self.refused(Refusal::Kernel {
                path: path.to_owned(),
                fstype,
            })),
        }
    }

    fn take(&self, budget: &mut Budget, bytes: u64) -> Result<(), VolumeError> {
        if budget.take(bytes) {
            return Ok(());
        }
        Err(self.refused(self.too_large(budget)))
    }

    /// The refusal of all of it.
    fn too_large(&self, budget: &Budget) -> Refusal {
        let mut measure = Measure::default();
        // Only words for a refusal depend on it.
        let _ = measure.add(&self.root);
        budget.refusal(&self.path, &measure)
    }

    fn stat(&self, entry: &OwnedFd, path: &Path) -> Result<Stat, VolumeError> {
        fstat(entry).map_err(|error| self.failed("look at", path, error.into()))
    }

    fn refused(&self, why: Refusal) -> VolumeError {
        VolumeError::Refused {
            destination: self.destination.to_owned(),
            why,
        }
    }

    fn failed(&self, action: &'static str, path: &Path, error: io::Error) -> VolumeError {
        VolumeError::Source {
            destination: self.destination.to_owned(),
            action,
            path: path.to_owned(),
            error,
        }
    }
}

/// Opens an entry to look at it, whatever it is, without any effect on it.
pub(crate) fn open_entry(dir: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// The names in a directory that was opened to look at it.
pub(crate) fn names(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut names = Vec::new();
    for entry in Dir::new(openat(dir, c".", flags, Mode::empty())?)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn copy_file(from: &OwnedFd, to: &Path, length: u64) -> io::Result<()> {
    // Known to be a regular file, and the descriptor stands for this one whatever its name is now.
    let from = File::open(fd_path(from))?;
    let mut to = File::options().write(true).create_new(true).open(to)?;
    // What is appended meanwhile is beyond what was accounted for.
    io::copy(&mut from.take(length), &mut to)?;
    Ok(())
}

/// Owner, permissions, extended attributes and modification time.
fn copy_attributes(from: &OwnedFd, stat: &Stat, to: &Path) -> io::Result<()> {
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    let owner = Uid::from_raw(stat.st_uid);
    let group = Gid::from_raw(stat.st_gid);
    chownat(CWD, to, Some(owner), Some(group), no_follow)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // After chown, which clears set-id bits and capabilities.
        chmodat(CWD, to, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
        copy_xattrs(from, to)?;
    }
    let modified = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0),
    };
    let times = Timestamps {
        last_access: modified,
        last_modification: modified,
    };
    Ok(utimensat(CWD, to, &times, no_follow)?)
}

fn copy_xattrs(from: &OwnedFd, to: &Path) -> io::Result<()> {
    let from = fd_path(from);
    // Neither a list nor a value can be longer (XATTR_LIST_MAX, XATTR_SIZE_MAX).
    let mut list = vec![0; 64 << 10];
    let length = listxattr(&from, &mut list[..])?;
    list.truncate(length);
    let mut value = vec![0; 64 << 10];
    for name in list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        // Labels belong to the host's policy.
        if matches!(
            name,
            b"security.selinux" | b"security.ima" | b"security.evm"
        ) {
            continue;
        }
        let length = getxattr(&from, name, &mut value[..])?;
        match setxattr(to, name, &value[..length], rustix::fs::XattrFlags::empty()) {
            Ok(()) => {}
            // Memory filesystems have no `user.` attributes before Linux 6.6.
            Err(rustix::io::Errno::OPNOTSUPP) => tracing::warn!(
                attribute = %String::from_utf8_lossy(name),
                "this kernel cannot copy an extended attribute into a VM"
            ),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_unchanged(before: &Stat, after: &Stat) -> bool {
    let times = |stat: &Stat| {
        (
            stat.st_mtime,
            stat.st_mtime_nsec,
            stat.st_ctime,
            stat.st_ctime_nsec,
        )
    };
    times(before) == times(after)
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
