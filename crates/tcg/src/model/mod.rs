//! The bodies of API requests and answers: Firecracker's API description, version 1.15, is the source of
//! every field name, unit and default. Unknown fields are refused, as there.

mod balloon;
mod boot_source;
mod drive;
mod entropy;
mod instance;
mod logger;
mod machine;
mod metrics;
mod mmds;
mod network;
mod rate_limiter;
mod serial;
mod vm_config;
mod vsock;

pub use balloon::{BalloonConfig, BalloonStatistics, BalloonStatisticsUpdate, BalloonUpdate};
pub use boot_source::BootSourceConfig;
pub use drive::{CacheType, DriveConfig, DriveUpdate, IoEngine};
pub use entropy::EntropyConfig;
pub use instance::{InstanceInfo, VmState, VmStateRequest, VmUpdate};
pub use logger::{Level, LoggerConfig};
pub use machine::{CpuTemplate, HugePages, MachineConfig, MachineConfigError, MachineConfigUpdate};
pub use metrics::MetricsConfig;
pub use mmds::{MmdsConfig, MmdsVersion};
pub use network::{MacAddress, NetworkConfig, NetworkUpdate, NoMacAddress};
pub use rate_limiter::{RateLimiter, TokenBucket};
pub use serial::SerialConfig;
pub use vm_config::VmConfig;
pub use vsock::VsockConfig;
