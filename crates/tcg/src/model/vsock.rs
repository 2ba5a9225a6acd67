use serde::{Deserialize, Serialize};

/// `PUT /vsock`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Deprecated, and without effect in Firecracker too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
    /// The guest's context id, at least 3.
    pub guest_cid: u32,
    /// Unix socket through which the host reaches the guest; the guest reaches `<uds_path>_<port>`.
    pub uds_path: String,
}
