//! Puts a file of the host where a jailed VMM sees it: a bind mount for a regular file or FIFO, a node for a block
//! device. The file's content is never read, and its owner is changed only where nothing else helps.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags, chmod, fstatvfs, mknodat, open};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::User;
use crate::access::Access;
use crate::file_limit::FileLimit;
use crate::idmap;
use crate::loan::Lender;
use crate::record::RecordError;

/// Why a file of the host cannot be shown to the VMM.
#[derive(Debug, thiserror::Error)]
pub enum ExposeError {
    /// The file cannot be opened.
    #[error("Cannot open {}, which the jailed VMM needs", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a socket or the like.
    #[error("{} has an unsupported mode: {mode:o}; it is neither a regular file nor a block device", path.display())]
    UnsupportedMode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is something else where a FIFO should be.
    #[error("{} is no FIFO", .0.display())]
    NoFifo(PathBuf),
    /// Not even the file's owner may do with it what the VMM needs to.
    #[error("{} has mode {mode:04o}, by which not even its owner may use it as the jailed VMM must", path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The VMM's program is where nothing is executed.
    #[error("{} is on a file system that is mounted noexec: nothing there can be executed", .0.display())]
    NoExec(PathBuf),
    /// The place in the jail cannot be made.
    #[error("Cannot make {} in the jail", path.display())]
    Target {
        /// The place, as the host sees it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be bound there.
    #[error("Cannot mount {} at {}", path.display(), target.display())]
    Mount {
        /// The file.
        path: PathBuf,
        /// The place in the jail, as the host sees it.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file's owner has to be changed, and cannot be.
    #[error("Cannot give {} to the jail's user, and its file system knows no id-mapped mounts", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another jail has it.
    #[error("{} cannot be lent to two jails, and its file system knows no id-mapped mounts: the VM of {} has it", path.display(), borrower.display())]
    Lent {
        /// The file.
        path: PathBuf,
        /// The other VM's directory.
        borrower: PathBuf,
    },
    /// The change cannot be recorded, so it is not made.
    #[error("Cannot record what has to be undone")]
    Record(#[from] RecordError),
    /// The VMM cannot be let to write a file that long.
    #[error("Cannot set the limit on the files that the jailed VMM writes")]
    Limit {
        /// Why.
        source: io::Error,
    },
    /// The file cannot be taken away again.
    #[error("Cannot take {} out of the jail; the VMM may still use it", path.display())]
    Withdraw {
        /// The place in the jail, as the host sees it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Shows files to one user.
#[derive(Debug)]
pub(crate) struct FileMounter {
    user: User,
    lender: Arc<Lender>,
    limit: Arc<FileLimit>,
    /// User namespaces by the owner that they map to `user`.
    namespaces: Mutex<HashMap<(u32, u32), Arc<OwnedFd>>>,
}

impl FileMounter {
    pub(crate) fn new(user: User, lender: Arc<Lender>, limit: Arc<FileLimit>) -> Self {
        Self {
            user,
            lender,
            limit,
            namespaces: Mutex::default(),
        }
    }

    /// Shows the file `path` as `target`, which must not exist. Links are followed.
    pub(crate) fn attach(
        &self,
        path: &Path,
        target: &Path,
        access: Access,
    ) -> Result<(), ExposeError> {
        self.attach_open(&find(path)?, path, target, access)
    }

    /// Likewise, for reading and writing, a FIFO, and nothing that somebody has put in its place.
    pub(crate) fn attach_fifo(&self, path: &Path, target: &Path) -> Result<(), ExposeError> {
        let file = find(path)?;
        if !metadata(&file, path)?.file_type().is_fifo() {
            return Err(ExposeError::NoFifo(path.to_owned()));
        }
        self.attach_open(&file, path, target, Access::Write)
    }

    /// Shows `file`, which was opened at `path`, as `target`, which must not exist. The path is only for errors.
    pub(crate) fn attach_open(
        &self,
        file: &File,
        path: &Path,
        target: &Path,
        access: Access,
    ) -> Result<(), ExposeError> {
        let metadata = metadata(file, path)?;
        let kind = metadata.file_type();
        if kind.is_block_device() {
            self.make_node(&metadata, target, access)
        } else if kind.is_file() || kind.is_fifo() {
            self.bind(path, file, &metadata, target, access)
        } else {
            Err(ExposeError::UnsupportedMode {
                path: path.to_owned(),
                mode: metadata.mode(),
            })
        }
    }

    /// Refuses what [`FileMounter::attach_open`] would refuse for its mode, and makes nothing.
    pub(crate) fn check(
        &self,
        file: &File,
        path: &Path,
        access: Access,
    ) -> Result<(), ExposeError> {
        let metadata = metadata(file, path)?;
        if metadata.file_type().is_block_device() || access.allowed(&metadata, self.user) {
            Ok(())
        } else {
            access.of_owner(path, &metadata)
        }
    }

    /// A node for the same device, for the jail's group only. Not for its user: whoever owns a node may change its mode,
    /// and write to what was to be read.
    fn make_node(
        &self,
        metadata: &Metadata,
        target: &Path,
        access: Access,
    ) -> Result<(), ExposeError> {
        let mode = Mode::from_raw_mode(if access == Access::Write {
            0o660
        } else {
            0o440
        });
        let make = || -> io::Result<()> {
            let nobody = Mode::empty();
            mknodat(CWD, target, FileType::BlockDevice, nobody, metadata.rdev())?;
            std::os::unix::fs::lchown(target, Some(0), Some(self.user.gid()))?;
            // Afterwards, as the umask does not count then. Nobody has put a link there: the VMM does not run yet, or sees
            // the directory as read-only.
            Ok(chmod(target, mode)?)
        };
        make().map_err(|source| ExposeError::Target {
            path: target.to_owned(),
            source,
        })
    }

    fn bind(
        &self,
        path: &Path,
        file: &File,
        metadata: &Metadata,
        target: &Path,
        access: Access,
    ) -> Result<(), ExposeError> {
        let error = |source| ExposeError::Mount {
            path: path.to_owned(),
            target: target.to_owned(),
            source,
        };
        if access == Access::Execute {
            // Which the runtime would only tell as a lack of permission.
            let mounted = fstatvfs(file).map_err(|e| error(e.into()))?;
            if mounted.f_flag.contains(StatVfsMountFlags::NOEXEC) {
                return Err(ExposeError::NoExec(path.to_owned()));
            }
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let mount = open_tree(file, "", flags).map_err(|e| error(e.into()))?;
        let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        if access != Access::Execute {
            attributes |= libc::MOUNT_ATTR_NOEXEC;
        }
        if access != Access::Write {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        set_attributes(&mount, attributes, None).map_err(error)?;
        if access == Access::Write && metadata.is_file() {
            let allowed = self.limit.allow(metadata.len());
            allowed.map_err(|source| ExposeError::Limit { source })?;
        }
        if !access.allowed(metadata, self.user) {
            self.let_in(path, file, metadata, &mount, access)?;
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(target)
            .map_err(|source| ExposeError::Target {
                path: target.to_owned(),
                source,
            })?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", CWD, target, flags).map_err(|e| error(e.into()))
    }

    /// Makes the file the jail user's: in this mount only, or, where the file system cannot, by a new owner.
    fn let_in(
        &self,
        path: &Path,
        file: &File,
        metadata: &Metadata,
        mount: &OwnedFd,
        access: Access,
    ) -> Result<(), ExposeError> {
        access.of_owner(path, metadata)?;
        let owner = (metadata.uid(), metadata.gid());
        let mapped = self
            .namespace(owner)
            .and_then(|namespace| set_attributes(mount, 0, Some(&namespace)));
        if let Err(reason) = mapped {
            tracing::info!(path = %path.display(), %reason, "No id-mapped mount: the file changes its owner until it is withdrawn");
            self.lender.lend(path, file)?;
        }
        Ok(())
    }

    fn namespace(&self, owner: (u32, u32)) -> io::Result<Arc<OwnedFd>> {
        let mut namespaces = self
            .namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(namespace) = namespaces.get(&owner) {
            return Ok(Arc::clone(namespace));
        }
        let namespace = Arc::new(idmap::user_namespace(owner, self.user)?);
        namespaces.insert(owner, Arc::clone(&namespace));
        Ok(namespace)
    }
}

/// Takes away what [`FileMounter::attach`] made at `target`. Nothing there is no error.
pub(crate) fn detach(target: &Path) -> Result<(), ExposeError> {
    let error = |source| ExposeError::Withdraw {
        path: target.to_owned(),
        source,
    };
    // One mount may lie above another one.
    loop {
        match unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(other) => return Err(error(other.into())),
        }
    }
    match fs::remove_file(target) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error(source)),
        _ => Ok(()),
    }
}

/// The file at `path`, to be looked at and mounted, not to be read.
fn find(path: &Path) -> Result<File, ExposeError> {
    let file = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let file = file.map_err(|errno| ExposeError::Open {
        path: path.to_owned(),
        source: errno.into(),
    })?;
    Ok(file.into())
}

fn metadata(file: &File, path: &Path) -> Result<Metadata, ExposeError> {
    file.metadata().map_err(|source| ExposeError::Open {
        path: path.to_owned(),
        source,
    })
}

/// mount_setattr(2) on a mount that is attached nowhere yet.
fn set_attributes(
    mount: &OwnedFd,
    attributes: u64,
    user_namespace: Option<&OwnedFd>,
) -> io::Result<()> {
    let mut arguments = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if let Some(namespace) = user_namespace {
        arguments.attr_set |= libc::MOUNT_ATTR_IDMAP;
        arguments.userns_fd = u64::try_from(namespace.as_fd().as_raw_fd())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    }
    // SAFETY: the path is an empty C string, and `arguments` is what the call takes, of the length said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const arguments,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
