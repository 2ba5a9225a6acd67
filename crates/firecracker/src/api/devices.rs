//! Drives, network interfaces, vsock, entropy, and the limits on them.

use serde::{Deserialize, Serialize};

/// `PUT /drives/{drive_id}`: a block device on a file. Before boot only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// The drive's id: letters, digits and underscores.
    pub drive_id: String,
    /// The file or block device behind it.
    pub path_on_host: String,
    /// Whether the guest boots from it: adds `root=` to the kernel's command line.
    pub is_root_device: bool,
    /// Whether the guest can only read it.
    pub is_read_only: bool,
    /// The partition to boot from, of a root device. Default: the whole device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    /// `Unsafe` (the guest cannot flush) or `Writeback`. Default `Unsafe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_type: Option<String>,
    /// Limits. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// `Sync` or `Async`. Default `Sync`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_engine: Option<String>,
}

impl Drive {
    /// A drive that the guest does not boot from, the rest as the VMM's defaults are.
    #[must_use]
    pub fn new(drive_id: impl Into<String>, path: impl Into<String>, read_only: bool) -> Self {
        Self {
            drive_id: drive_id.into(),
            path_on_host: path.into(),
            is_root_device: false,
            is_read_only: read_only,
            partuuid: None,
            cache_type: None,
            rate_limiter: None,
            io_engine: None,
        }
    }
}

/// `PATCH /drives/{drive_id}`: changes a drive of a booted VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveUpdate {
    /// The drive.
    pub drive_id: String,
    /// Its new file. `None` keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// Its new limits. `None` keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

impl DriveUpdate {
    /// Puts another file behind a drive.
    #[must_use]
    pub fn path(drive_id: impl Into<String>, path: impl Into<String>) -> Self {
        Self {
            drive_id: drive_id.into(),
            path_on_host: Some(path.into()),
            rate_limiter: None,
        }
    }
}

/// `PUT /network-interfaces/{iface_id}`. Before boot only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterface {
    /// The interface's id: letters, digits and underscores.
    pub iface_id: String,
    /// The tap on the host.
    pub host_dev_name: String,
    /// The guest's MAC address. Default: chosen by the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Limits on what the guest receives. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits on what the guest sends. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PATCH /network-interfaces/{iface_id}`: changes an interface's limits in a booted VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInterfaceUpdate {
    /// The interface.
    pub iface_id: String,
    /// Its new limits on what the guest receives. `None` keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Its new limits on what the guest sends. `None` keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// `PUT /vsock`: the vsock device. Before boot only.
///
/// Its deprecated `vsock_id` is not sent; Firecracker has not required it since 1.0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vsock {
    /// The guest's address, from 3.
    pub guest_cid: u32,
    /// The Unix socket for connections to the guest; `<uds_path>_<port>` are those from the guest.
    pub uds_path: String,
}

/// `PUT /entropy`: a source of random numbers. Before boot only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy {
    /// Limits. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// Limits on a device; each is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiter {
    /// Limit on bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Limit on operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// `size` tokens every `refill_time` milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// Tokens that the bucket holds.
    pub size: u64,
    /// Time in milliseconds in which an empty bucket fills. 0 switches the limit off.
    pub refill_time: u64,
    /// Further tokens that are there once, at first. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
}
