use serde::{Deserialize, Serialize};

use super::RateLimiter;

/// What becomes of the guest's flush requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum CacheType {
    /// They are ignored.
    #[default]
    Unsafe,
    /// They reach the host's disk.
    Writeback,
}

/// How the host does the I/O; the guest cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum IoEngine {
    /// Blocking system calls (QEMU: on worker threads).
    #[default]
    Sync,
    /// io_uring.
    Async,
}

/// `PUT /drives/{drive_id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// Identifies the drive; letters, digits and underscores.
    pub drive_id: String,
    /// Partition of the root drive to boot from.
    pub partuuid: Option<String>,
    /// Whether the guest's root file system is on this drive; it then comes first (`/dev/vda`).
    pub is_root_device: bool,
    /// Default [`CacheType::Unsafe`].
    #[serde(default)]
    pub cache_type: CacheType,
    /// Whether the guest may only read; default no.
    pub is_read_only: Option<bool>,
    /// Host path; required here, as there is no vhost-user `socket` instead.
    pub path_on_host: Option<String>,
    /// Limits on the guest's I/O.
    pub rate_limiter: Option<RateLimiter>,
    /// Default [`IoEngine::Sync`].
    pub io_engine: Option<IoEngine>,
    /// A vhost-user-blk back end, which is not offered.
    pub socket: Option<String>,
}

/// `PATCH /drives/{drive_id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveUpdate {
    /// The drive.
    pub drive_id: String,
    /// New host path.
    pub path_on_host: Option<String>,
    /// New limits.
    pub rate_limiter: Option<RateLimiter>,
}
