//! What a slot's writability means for mount options.

/// A mount option that contradicts the drive it is for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Mount option {option} is incompatible with IsWritable={writable}")]
pub struct OptionError {
    /// `ro` or `rw`.
    pub option: String,
    /// Whether the drive can be written to.
    pub writable: bool,
}

/// Adds `rw` or `ro` to `options` unless it is there already.
pub(crate) fn with_access(
    options: Vec<String>,
    writable: bool,
) -> Result<Vec<String>, OptionError> {
    let (right, wrong) = if writable { ("rw", "ro") } else { ("ro", "rw") };
    if options.iter().any(|option| option == wrong) {
        return Err(OptionError {
            option: wrong.into(),
            writable,
        });
    }
    let mut options = options;
    if !options.iter().any(|option| option == right) {
        options.push(right.into());
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(options: &[&str], writable: bool) -> Result<Vec<String>, OptionError> {
        with_access(
            options.iter().map(|option| (*option).into()).collect(),
            writable,
        )
    }

    #[test]
    fn access_is_added_once() {
        assert_eq!(access(&[], true).unwrap(), ["rw"]);
        assert_eq!(access(&["noatime"], false).unwrap(), ["noatime", "ro"]);
        assert_eq!(access(&["rw", "noatime"], true).unwrap(), ["rw", "noatime"]);
    }

    #[test]
    fn a_contradiction_is_named() {
        let error = access(&["ro"], true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Mount option ro is incompatible with IsWritable=true"
        );
        let error = access(&["rw"], false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Mount option rw is incompatible with IsWritable=false"
        );
    }
}
