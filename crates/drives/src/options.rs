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

/// Checks that `options` do not contradict a drive that can, or cannot, be written to. Each is one of mount(8)'s, or
/// several with commas between, as the guest takes them.
///
/// # Errors
/// Names the one that does.
pub fn check_access(options: &[String], writable: bool) -> Result<(), OptionError> {
    let wrong = word(!writable);
    if has(options, wrong) {
        return Err(OptionError {
            option: wrong.into(),
            writable,
        });
    }
    Ok(())
}

/// Adds `rw` or `ro` to `options` unless it is there already.
pub(crate) fn with_access(
    mut options: Vec<String>,
    writable: bool,
) -> Result<Vec<String>, OptionError> {
    check_access(&options, writable)?;
    let right = word(writable);
    if !has(&options, right) {
        options.push(right.into());
    }
    Ok(options)
}

fn word(writable: bool) -> &'static str {
    if writable { "rw" } else { "ro" }
}

fn has(options: &[String], wanted: &str) -> bool {
    let mut words = options.iter().flat_map(|option| option.split(','));
    words.any(|word| word == wanted)
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
        assert_eq!(access(&["noatime,rw"], true).unwrap(), ["noatime,rw"]);
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
        // The guest would take the last one.
        let error = access(&["ro,noatime"], true).unwrap_err();
        assert_eq!(error.option, "ro");
        access(&["errors=remount-ro"], true).unwrap();
    }
}
