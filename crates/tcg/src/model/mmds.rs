use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// `PUT /mmds/config`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// How guests ask.
    #[serde(default)]
    pub version: MmdsVersion,
    /// Ids of the interfaces on which guests may ask.
    pub network_interfaces: Vec<String>,
    /// Address that they ask, from the link-local ones; 169.254.169.254 unless given.
    pub ipv4_address: Option<Ipv4Addr>,
    /// Whether answers are those of EC2's service.
    #[serde(default)]
    pub imds_compat: bool,
}

/// How a guest asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum MmdsVersion {
    /// Just so.
    #[default]
    V1,
    /// With a token that it has asked for before.
    V2,
}
