//! What is said to a VMM: the bodies of the calls that [`Client`](crate::Client) makes.
//!
//! Names, units and defaults are those of Firecracker's API description, version 1.15
//! (`src/firecracker/swagger/firecracker.yaml`). Optional fields that are `None` are not sent: the VMM's default
//! applies. Paths are the VMM's: relative ones start at its working directory.

mod balloon;
mod devices;
mod machine;
mod mmds;
mod telemetry;

pub use balloon::{Balloon, BalloonStatistics, BalloonStatisticsUpdate, BalloonUpdate};
pub use devices::{
    Drive, DriveUpdate, Entropy, NetworkInterface, NetworkInterfaceUpdate, RateLimiter,
    TokenBucket, Vsock,
};
pub use machine::{
    Action, ActionType, BootSource, FirecrackerVersion, InstanceInfo, InstanceState, MachineConfig,
    VmState, VmUpdate,
};
pub use mmds::{MmdsConfig, MmdsVersion};
pub use telemetry::{Logger, Metrics};
