//! Ids of containers and processes; they become file names.

use super::error::TaskError;

/// containerd's longest.
const MAX: usize = 76;

/// Accepts what containerd accepts: letters and digits, with single `.`, `_` or `-` between them.
///
/// # Errors
/// Any other id.
pub(super) fn validate(id: &str) -> Result<(), TaskError> {
    let parts = id.split(['.', '_', '-']);
    let valid = id.len() <= MAX
        && parts
            .into_iter()
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()));
    if valid {
        Ok(())
    } else {
        Err(TaskError::Id(id.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_containerds() {
        for id in ["a", "A-b_c.9", &"x".repeat(MAX)] {
            assert!(validate(id).is_ok(), "{id}");
        }
        for id in [
            "",
            ".",
            "..",
            "a/b",
            "-a",
            "a-",
            "a--b",
            "a b",
            "ä",
            &"x".repeat(MAX + 1),
        ] {
            assert!(validate(id).is_err(), "{id}");
        }
    }
}
