//! Who the VMM runs as.

/// The user and group of a jailed VMM; neither is root, and both are ids that a process can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
}

/// Who no VMM can run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Root, in what would be no jail. The text is the original's.
    #[error("attempting to run as {uid}:{gid}. 0 cannot be used for the UID or GID")]
    Root {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// The number that system calls take for "as it is".
    #[error("{uid}:{gid} cannot be used: the highest UID and GID is {}", u32::MAX - 1)]
    None {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

impl User {
    /// The user `uid` with the group `gid`. Neither needs to have a name on the host.
    ///
    /// # Errors
    /// When either is 0, or the number that is no id.
    pub fn new(uid: u32, gid: u32) -> Result<Self, UserError> {
        if uid == 0 || gid == 0 {
            Err(UserError::Root { uid, gid })
        } else if uid == u32::MAX || gid == u32::MAX {
            Err(UserError::None { uid, gid })
        } else {
            Ok(Self { uid, gid })
        }
    }

    /// User id.
    #[must_use]
    pub fn uid(self) -> u32 {
        self.uid
    }

    /// Group id.
    #[must_use]
    pub fn gid(self) -> u32 {
        self.gid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_jailed_as_root() {
        for (uid, gid) in [(0, 1), (1, 0), (0, 0)] {
            let error = User::new(uid, gid).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("attempting to run as {uid}:{gid}. 0 cannot be used for the UID or GID")
            );
        }
        assert_eq!(User::new(3, 4).map(User::gid), Ok(4));
    }

    #[test]
    fn what_means_no_user_is_none() {
        for (uid, gid) in [(u32::MAX, 1), (1, u32::MAX)] {
            let error = User::new(uid, gid).unwrap_err();
            assert!(error.to_string().contains("4294967294"), "{error}");
        }
        assert!(User::new(u32::MAX - 1, u32::MAX - 1).is_ok());
    }
}
