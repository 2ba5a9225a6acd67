//! Names of namespaces, VMs and containers, checked by containerd's rule.

/// Longest identifier, in bytes (containerd's limit).
pub const MAX_LEN: usize = 76;

/// Why a string is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentifier {
    /// Nothing there.
    #[error("An identifier must not be empty")]
    Empty,
    /// More than [`MAX_LEN`] bytes.
    #[error("Identifier {0:?} is longer than {MAX_LEN} characters")]
    TooLong(String),
    /// Something other than letters and digits joined by single `.`, `_` or `-`.
    #[error(
        "Identifier {0:?} must be made of letters and digits, joined by single '.', '_' or '-'"
    )]
    Malformed(String),
}

/// Checks `id` as containerd does: letters and digits in groups that single
/// `.`, `_` or `-` join, at most [`MAX_LEN`] bytes. Such a string is safe as a file name.
///
/// # Errors
/// What is wrong with it.
pub fn validate(id: &str) -> Result<(), InvalidIdentifier> {
    if id.is_empty() {
        return Err(InvalidIdentifier::Empty);
    }
    if id.len() > MAX_LEN {
        return Err(InvalidIdentifier::TooLong(id.to_owned()));
    }
    let well_formed = id
        .split(['.', '_', '-'])
        .all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_alphanumeric()));
    if well_formed {
        Ok(())
    } else {
        Err(InvalidIdentifier::Malformed(id.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_containerd_accepts() {
        for id in ["a", "A9", "vm-1", "a.b_c-d", &"x".repeat(76)] {
            assert_eq!(validate(id), Ok(()), "{id}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for id in ["", "-a", "a-", "a--b", "a/b", "..", "ä", &"x".repeat(77)] {
            assert!(validate(id).is_err(), "{id}");
        }
    }
}
