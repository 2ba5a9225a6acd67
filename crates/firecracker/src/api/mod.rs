//! What is said to a VMM: the bodies of the calls that [`Client`](crate::Client) makes.
//!
//! Names, units and defaults are those of Firecracker's API description, version 1.15
//! (`src/firecracker/swagger/firecracker.yaml`). Optional fields that are `None` are not sent: the VMM's default
//! applies. Paths are the VMM's: relative ones start at its working directory, in a jail at its root.
//!
//! Fields of the description that nobody here needs are left out, and ignored in answers: `module` of the logger, page
//! hinting and reporting of the balloon, `socket` of a vhost-user drive. What the VMM answers with may have more fields
//! than are known here.
//!
//! A new call is a line in the table of `calls.rs`, and a type here for its body or its answer.

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
