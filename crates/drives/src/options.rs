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

/// Adds to the `options` of a filesystem of type `fstype` what a drive needs: `rw` or `ro`, and for xfs `nouuid`.
pub(crate) fn for_drive(
    fstype: &str,
    mut options: Vec<String>,
    writable: bool,
) -> Result<Vec<String>, OptionError> {
    check_access(&options, writable)?;
    // One image may be attached twice, and images are copies of others: xfs takes only one of each id otherwise.
    let unique = (fstype == "xfs").then_some("nouuid");
    for needed in [Some(word(writable)), unique].into_iter().flatten() {
        if !has(&options, needed) {
            options.push(needed.into());
        }
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
        let options = options.iter().map(|option| (*option).into()).collect();
        for_drive("ext4", options, writable)
    }

    #[test]
    fn access_is_added_once() {
        assert_eq!(access(&[], true).unwrap(), ["rw"]);
        assert_eq!(access(&["noatime"], false).unwrap(), ["noatime", "ro"]);
        assert_eq!(access(&["rw", "noatime"], true).unwrap(), ["rw", "noatime"]);
        assert_eq!(access(&["noatime,rw"], true).unwrap(), ["noatime,rw"]);
    }

    #[test]
    fn xfs_is_told_that_ids_may_repeat() {
        let options = for_drive("xfs", vec!["noatime".into()], false).unwrap();
        assert_eq!(options, ["noatime", "ro", "nouuid"]);
        let options = for_drive("xfs", vec!["nouuid,rw".into()], true).unwrap();
        assert_eq!(options, ["nouuid,rw"]);
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
