//! The drives of a VM: its root device, and what the host mounts in the guest.

use std::path::PathBuf;

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
    /// Where the guest mounts it.
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
    let mounts = requests.iter().enumerate();
    mounts
        .map(|(index, mount)| drive_mount(&drive_mount_field(index), mount))
        .collect()
}

fn drive_mount(field: &str, mount: &FirecrackerDriveMount) -> Result<DriveMount, SpecError> {
    let required = |name: &str| SpecError::Required {
        field: format!("{field}.{name}"),
    };
    let host_path = absolute(&format!("{field}.HostPath"), &mount.HostPath)?;
    let vm_path = absolute(&format!("{field}.VMPath"), &mount.VMPath)?;
    let wrong = if mount.IsWritable { "ro" } else { "rw" };
    if mount.Options.iter().any(|option| option == wrong) {
        return Err(SpecError::MountOption {
            field: format!("{field}.Options"),
            option: wrong,
            writable: mount.IsWritable,
        });
    }
    Ok(DriveMount {
        host_path: host_path.ok_or_else(|| required("HostPath"))?,
        vm_path: vm_path
            .map(|_| mount.VMPath.clone())
            .ok_or_else(|| required("VMPath"))?,
        fstype: text(&mount.FilesystemType).ok_or_else(|| required("FilesystemType"))?,
        options: mount.Options.clone(),
        writable: mount.IsWritable,
        cache_type: cache_type(field, &mount.CacheType)?,
        rate_limiter: mount.RateLimiter.as_ref().map(rate_limiter),
    })
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
    fn errors_name_the_field() {
        type Change = fn(&mut FirecrackerDriveMount);
        let wrong: [(&str, Change); 6] = [
            ("DriveMounts[1].HostPath", |m| {
                m.HostPath = "data.img".into()
            }),
            ("DriveMounts[1].HostPath", |m| m.HostPath.clear()),
            ("DriveMounts[1].VMPath", |m| m.VMPath = "data".into()),
            ("DriveMounts[1].FilesystemType", |m| {
                m.FilesystemType.clear()
            }),
            ("DriveMounts[1].Options", |m| m.Options = vec!["rw".into()]),
            ("DriveMounts[1].CacheType", |m| {
                m.CacheType = "writeback".into()
            }),
        ];
        for (field, change) in wrong {
            let mut second = mount();
            change(&mut second);
            let error = drive_mounts(&[mount(), second]).unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
