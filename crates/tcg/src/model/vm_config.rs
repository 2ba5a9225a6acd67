use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    BalloonConfig, BootSourceConfig, DriveConfig, EntropyConfig, LoggerConfig, MachineConfig,
    MetricsConfig, MmdsConfig, NetworkConfig, VsockConfig,
};

/// The whole configuration: answer to `GET /vm/config`, and content of `--config-file`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmConfig {
    /// The balloon.
    pub balloon: Option<BalloonConfig>,
    /// In the order in which the guest sees them.
    pub drives: Vec<DriveConfig>,
    /// The kernel.
    pub boot_source: BootSourceConfig,
    /// Not offered.
    pub cpu_config: Option<Value>,
    /// Only in files; never in an answer.
    pub logger: Option<LoggerConfig>,
    /// Processors and memory.
    pub machine_config: Option<MachineConfig>,
    /// Only in files; never in an answer.
    pub metrics: Option<MetricsConfig>,
    /// The metadata service.
    pub mmds_config: Option<MmdsConfig>,
    /// In the order in which the guest sees them.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkConfig>,
    /// The vsock device.
    pub vsock: Option<VsockConfig>,
    /// The source of random numbers.
    pub entropy: Option<EntropyConfig>,
    /// Not offered.
    #[serde(default)]
    pub pmem: Vec<Value>,
    /// Not offered.
    pub memory_hotplug: Option<Value>,
}

impl VmConfig {
    /// Name of the first part that is set but not offered.
    #[must_use]
    pub fn unsupported(&self) -> Option<&'static str> {
        [
            (self.cpu_config.is_some(), "cpu-config"),
            (!self.pmem.is_empty(), "pmem"),
            (self.memory_hotplug.is_some(), "memory-hotplug"),
        ]
        .into_iter()
        .find_map(|(set, name)| set.then_some(name))
    }
}
