//! Who the VMM runs as.

/// The user and group of a jailed VMM; neither is root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
}

/// A jail for root, which would be none. The text is the original's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("attempting to run as {uid}:{gid}. 0 cannot be used for the UID or GID")]
pub struct RootUser {
    uid: u32,
    gid: u32,
}

impl User {
    /// The user `uid` with the group `gid`. Neither needs to have a name on the host.
    ///
    /// # Errors
    /// When either is 0.
    pub fn new(uid: u32, gid: u32) -> Result<Self, RootUser> {
        if uid == 0 || gid == 0 {
            Err(RootUser { uid, gid })
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
}
