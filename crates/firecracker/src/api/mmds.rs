//! The metadata service that a guest reaches over its network.

use serde::{Deserialize, Serialize};

/// `PUT /mmds/config`. Before boot only, after the interfaces it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmdsConfig {
    /// Ids of the interfaces through which the service answers.
    pub network_interfaces: Vec<String>,
    /// The service's version. Default `V1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<MmdsVersion>,
    /// The service's address, link-local. Default `169.254.169.254`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<String>,
    /// Whether to answer with plain text whatever the request accepts, as EC2 does. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imds_compat: Option<bool>,
}

/// How a guest talks to the metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MmdsVersion {
    /// By plain requests.
    V1,
    /// In sessions, with a token.
    V2,
}
