//! The value of `--mount`.

use std::str::FromStr;

use fc_proto::control::FirecrackerDriveMount;

/// A drive mount as it is written on the command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    host: String,
    vm: String,
    fstype: String,
    writable: bool,
    cache: String,
    options: Vec<String>,
}

/// What is wrong with a `--mount`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// A key is not known.
    #[error("{0:?} is none of host=, vm=, type=, cache=, option=, rw")]
    Unknown(String),
    /// A key that must be there is not.
    #[error("{0}= is missing")]
    Missing(&'static str),
}

impl FromStr for Mount {
    type Err = MountError;

    fn from_str(text: &str) -> Result<Self, MountError> {
        let mut mount = Self::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("host", value)) => value.clone_into(&mut mount.host),
                Some(("vm", value)) => value.clone_into(&mut mount.vm),
                Some(("type", value)) => value.clone_into(&mut mount.fstype),
                Some(("cache", value)) => value.clone_into(&mut mount.cache),
                Some(("option", value)) => mount.options.push(value.to_owned()),
                None if part == "rw" => mount.writable = true,
                _ => return Err(MountError::Unknown(part.to_owned())),
            }
        }
        for (key, value) in [
            ("host", &mount.host),
            ("vm", &mount.vm),
            ("type", &mount.fstype),
        ] {
            if value.is_empty() {
                return Err(MountError::Missing(key));
            }
        }
        Ok(mount)
    }
}

impl From<&Mount> for FirecrackerDriveMount {
    fn from(mount: &Mount) -> Self {
        Self {
            HostPath: mount.host.clone(),
            VMPath: mount.vm.clone(),
            FilesystemType: mount.fstype.clone(),
            Options: mount.options.clone(),
            IsWritable: mount.writable,
            CacheType: mount.cache.clone(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
        let mount: Mount = "host=/a,vm=/b,type=ext4,rw,option=noatime,option=nodev"
            .parse()
            .expect("a mount");
        let message = FirecrackerDriveMount::from(&mount);
        assert_eq!(message.HostPath, "/a");
        assert!(message.IsWritable);
        assert_eq!(message.Options, ["noatime", "nodev"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<Mount>().expect_err("not a mount");
        assert_eq!(error("host=/a,vm=/b"), MountError::Missing("type"));
        assert_eq!(error("host=/a,ro"), MountError::Unknown("ro".to_owned()));
    }
}
