//! The names in the VMM's root directory, and whose they are: the VMM can remove and replace its own only.

use std::fs::{Permissions, set_permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};

use crate::User;
use crate::error::JailError;
use crate::exposer::check_name;

/// The VMM's root directory, as the host sees it.
pub(crate) struct Root {
    path: PathBuf,
    user: User,
}

impl Root {
    pub(crate) fn new(path: PathBuf, user: User) -> Self {
        Self { path, user }
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the VMM use the file or socket `name` that the host made.
    pub(crate) fn share(&self, name: &str) -> Result<(), JailError> {
        check_name(name)?;
        let path = self.path.join(name);
        let error = self.error(name);
        let kind = path.symlink_metadata().map_err(&error)?.file_type();
        if kind.is_socket() {
            // The group may connect; only the owner of a file can remove it from a sticky directory.
            self.give(name, 0)?;
            set_permissions(&path, Permissions::from_mode(0o660)).map_err(error)
        } else {
            self.give(name, self.user.uid())
        }
    }

    /// Takes a socket that the VMM made out of its hands.
    pub(crate) fn take_socket(&self, name: &str) -> Result<(), JailError> {
        check_name(name)?;
        // Root's before it is looked at: from then on it stays what it is.
        self.give(name, 0)?;
        let path = self.path.join(name);
        let metadata = path.symlink_metadata().map_err(self.error(name))?;
        if metadata.file_type().is_socket() {
            Ok(())
        } else {
            Err(JailError::NoSocket { path })
        }
    }

    /// Gives a name to `uid` and the jail's group, whatever it is; a link is not followed.
    fn give(&self, name: &str, uid: u32) -> Result<(), JailError> {
        let gid = Gid::from_raw(self.user.gid());
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let path = self.path.join(name);
        chownat(CWD, &path, Some(Uid::from_raw(uid)), Some(gid), flags)
            .map_err(|error| self.error(name)(error.into()))
    }

    fn error(&self, name: &str) -> impl Fn(io::Error) -> JailError {
        let path = self.path.join(name);
        move |source| JailError::File {
            path: path.clone(),
            source,
        }
    }
}
