//! The drives of a VM: its root device, and what the host mounts in the guest.

use std::path::{Component, Path, PathBuf};

use fc_client::api::{RateLimiter, TokenBucket};
use fc_config::Config;
use fc_proto::control::{
    FirecrackerDriveMount, FirecrackerRateLimiter, FirecrackerRootDrive, FirecrackerTokenBucket,
};

use super::{SpecError, absolute, text};

/// The VM's root device.
#[derive(Debug, Clone, PartialEq)]
pub struct RootDrive {
    /// Image file or block device on the host.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub writable: bool,
    /// Partition to boot from instead of the whole device.
    pub partuuid: Option<String>,
    /// Firecracker's cache type, `Unsafe` or `Writeback`.
    pub cache_type: Option<String>,
    /// Limits on the device; values of a bucket below 1 count as not set, as in the original.
    pub rate_limiter: Option<RateLimiter>,
}

/// An image or block device of the host that the guest has mounted from the start.
#[derive(Debug, Clone, PartialEq)]
pub struct DriveMount {
    /// Image file or block device on the host.
    pub host_path: PathBuf,
    /// Where the guest mounts it, without `.` and `..`; no earlier drive mount is there or below.
    pub vm_path: String,
    /// Type of the filesystem in it.
    pub fstype: String,
    /// Mount options; none of them contradicts `writable`.
    pub options: Vec<String>,
    /// Whether the guest may write to it.
    pub writable: bool,
    /// Firecracker's cache type, `Unsafe` or `Writeback`.
    pub cache_type: Option<String>,
    /// Limits on the device; values of a bucket below 1 count as not set, as in the original.
    pub rate_limiter: Option<RateLimiter>,
}

/// The name of a drive mount in errors, and of its slot's user: never a container's id.
#[must_use]
pub fn drive_mount_field(index: usize) -> String {
    format!("DriveMounts[{index}]")
}

pub(super) fn root_drive(
    config: &Config,
    request: Option<&FirecrackerRootDrive>,
) -> Result<RootDrive, SpecError> {
    let Some(drive) = request else {
        return Ok(RootDrive {
            path: config.root_drive.clone(),
            writable: false,
            partuuid: None,
            cache_type: None,
            rate_limiter: None,
        });
    };
    Ok(RootDrive {
        path: absolute("RootDrive.HostPath", &drive.HostPath)?
            .unwrap_or_else(|| config.root_drive.clone()),
        writable: drive.IsWritable,
        partuuid: text(&drive.Partuuid),
        cache_type: cache_type("RootDrive", &drive.CacheType)?,
        rate_limiter: drive.RateLimiter.as_ref().map(rate_limiter),
    })
}

pub(super) fn drive_mounts(
    requests: &[FirecrackerDriveMount],
) -> Result<Vec<DriveMount>, SpecError> {
    let mut mounts: Vec<DriveMount> = Vec::with_capacity(requests.len());
    for (index, request) in requests.iter().enumerate() {
        let field = drive_mount_field(index);
        let mount = drive_mount(&field, request)?;
        let is_covered =
            |earlier: &DriveMount| Path::new(&earlier.vm_path).starts_with(&mount.vm_path);
        if let Some(number) = mounts.iter().position(is_covered) {
            return Err(SpecError::Value {
                field: format!("{field}.VMPath"),
                problem: format!(
                    "{:?} would cover {} at {:?}, which is mounted before it",
                    mount.vm_path,
                    drive_mount_field(number),
                    mounts[number].vm_path
                ),
            });
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

fn drive_mount(field: &str, mount: &FirecrackerDriveMount) -> Result<DriveMount, SpecError> {
    let required = |name: &str| SpecError::Required {
        field: format!("{field}.{name}"),
    };
    let host_path = absolute(&format!("{field}.HostPath"), &mount.HostPath)?;
    let vm_path = absolute(&format!("{field}.VMPath"), &mount.VMPath)?;
    fc_drives::check_access(&mount.Options, mount.IsWritable).map_err(|problem| {
        SpecError::MountOption {
            field: format!("{field}.Options"),
            problem,
        }
    })?;
    Ok(DriveMount {
        host_path: host_path.ok_or_else(|| required("HostPath"))?,
        vm_path: plain(&vm_path.ok_or_else(|| required("VMPath"))?),
        fstype: text(&mount.FilesystemType).ok_or_else(|| required("FilesystemType"))?,
        options: mount.Options.clone(),
        writable: mount.IsWritable,
        cache_type: cache_type(field, &mount.CacheType)?,
        rate_limiter: mount.RateLimiter.as_ref().map(rate_limiter),
    })
}

/// An absolute path without `.`, `..` and doubled slashes, whatever links there are.
fn plain(path: &Path) -> String {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            // Above `/` is `/`.
            Component::ParentDir => drop(plain.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain.to_string_lossy().into_owned()
}

fn cache_type(field: &str, name: &str) -> Result<Option<String>, SpecError> {
    match name {
        "" => Ok(None),
        "Unsafe" | "Writeback" => Ok(Some(name.to_owned())),
        _ => Err(SpecError::Value {
            field: format!("{field}.CacheType"),
            problem: format!("{name:?} is neither \"Unsafe\" nor \"Writeback\""),
        }),
    }
}

/// A limit of the request as the VMM takes it.
pub(super) fn rate_limiter(limiter: &FirecrackerRateLimiter) -> RateLimiter {
    RateLimiter {
        bandwidth: limiter.Bandwidth.as_ref().map(token_bucket),
        ops: limiter.Ops.as_ref().map(token_bucket),
    }
}

/// Only what is greater than zero counts as set (the original's rule): what is negative is no error, because the
/// original's clients may rely on it.
fn token_bucket(bucket: &FirecrackerTokenBucket) -> TokenBucket {
    let positive = |field: &str, n: i64| {
        if n < 0 {
            tracing::warn!("{field} of a token bucket is negative ({n}): it counts as not set");
        }
        u64::try_from(n).ok().filter(|n| *n > 0)
    };
    TokenBucket {
        one_time_burst: positive("OneTimeBurst", bucket.OneTimeBurst),
        refill_time: positive("RefillTime", bucket.RefillTime).unwrap_or_default(),
        size: positive("Capacity", bucket.Capacity).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::protobuf::MessageField;

    fn mount() -> FirecrackerDriveMount {
        FirecrackerDriveMount {
            HostPath: "/images/data.img".into(),
            VMPath: "/data".into(),
            FilesystemType: "ext4".into(),
            ..FirecrackerDriveMount::default()
        }
    }

    #[test]
    fn every_field_is_taken() {
        let mounts = drive_mounts(&[FirecrackerDriveMount {
            Options: vec!["noatime".into(), "rw".into()],
            IsWritable: true,
            CacheType: "Writeback".into(),
            RateLimiter: MessageField::some(FirecrackerRateLimiter {
                Ops: MessageField::some(FirecrackerTokenBucket {
                    OneTimeBurst: -1,
                    RefillTime: 100,
                    Capacity: 7,
                    ..FirecrackerTokenBucket::default()
                }),
                ..FirecrackerRateLimiter::default()
            }),
            ..mount()
        }]);
        assert_eq!(
            mounts.unwrap(),
            [DriveMount {
                host_path: "/images/data.img".into(),
                vm_path: "/data".into(),
                fstype: "ext4".into(),
                options: vec!["noatime".into(), "rw".into()],
                writable: true,
                cache_type: Some("Writeback".into()),
                rate_limiter: Some(RateLimiter {
                    bandwidth: None,
                    ops: Some(TokenBucket {
                        size: 7,
                        refill_time: 100,
                        one_time_burst: None
                    }),
                }),
            }]
        );
    }

    #[test]
    fn one_that_would_cover_an_earlier_one_is_refused() {
        let at = |path: &str| FirecrackerDriveMount {
            VMPath: path.into(),
            ..mount()
        };
        for second in ["/data", "/data/", "//data/.", "/x/../data", "/", "/../"] {
            let error = drive_mounts(&[at("/other"), at("/data"), at(second)]).unwrap_err();
            let text = error.to_string();
            let plain = if second.contains("data") {
                "/data"
            } else {
                "/"
            };
            let start = format!("DriveMounts[2].VMPath: {plain:?} would cover DriveMounts[");
            assert!(text.starts_with(&start), "{text}");
        }
        // In it, or beside it.
        let mounts = drive_mounts(&[at("/data"), at("/data/./in"), at("/data2"), at("/dat")]);
        let paths: Vec<_> = mounts.unwrap().into_iter().map(|m| m.vm_path).collect();
        assert_eq!(paths, ["/data", "/data/in", "/data2", "/dat"]);
    }

    #[test]
    fn errors_name_the_field() {
        type Change = fn(&mut FirecrackerDriveMount);
        let wrong: [(&str, Change); 7] = [
            ("DriveMounts[1].HostPath", |m| {
                m.HostPath = "data.img".into()
            }),
            ("DriveMounts[1].HostPath", |m| m.HostPath.clear()),
            ("DriveMounts[1].VMPath", |m| m.VMPath = "data".into()),
            ("DriveMounts[1].FilesystemType", |m| {
                m.FilesystemType.clear()
            }),
            ("DriveMounts[1].Options", |m| m.Options = vec!["rw".into()]),
            ("DriveMounts[1].Options", |m| {
                m.Options = vec!["noatime,rw".into()]
            }),
            ("DriveMounts[1].CacheType", |m| {
                m.CacheType = "writeback".into()
            }),
        ];
        for (field, change) in wrong {
            let mut second = FirecrackerDriveMount {
                VMPath: "/other".into(),
                ..mount()
            };
            change(&mut second);
            let error = drive_mounts(&[mount(), second]).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
