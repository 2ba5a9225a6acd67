//! What the VMM may do with a file, and whether the file's mode lets it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::User;
use crate::file_mount::ExposeError;

/// What the VMM may do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read it.
    Read,
    /// Read and execute it.
    Execute,
    /// Read and write it.
    Write,
}

impl Access {
    /// What a drive needs.
    pub(crate) fn of_drive(read_only: bool) -> Access {
        if read_only {
            Access::Read
        } else {
            Access::Write
        }
    }

    /// Whether `user` may use the file so, by its mode alone.
    pub(crate) fn allowed(self, file: &Metadata, user: User) -> bool {
        let mode = file.mode();
        self.is_in(if file.uid() == user.uid() {
            mode >> 6
        } else if file.gid() == user.gid() {
            mode >> 3
        } else {
            mode
        })
    }

    /// Refuses a file that not even its owner, as whom the VMM would appear, may use so.
    pub(crate) fn of_owner(self, path: &Path, file: &Metadata) -> Result<(), ExposeError> {
        if self.is_in(file.mode() >> 6) {
            Ok(())
        } else {
            Err(ExposeError::Permissions {
                path: path.to_owned(),
                mode: file.mode() & 0o7777,
            })
        }
    }

    /// Whether the lowest three bits of `class` allow it.
    fn is_in(self, class: u32) -> bool {
        let needed = match self {
            Access::Read => 0o4,
            Access::Execute => 0o5,
            Access::Write => 0o6,
        };
        class & needed == needed
    }
}
