//! The control API: ttrpc service `Firecracker` (bare name on the wire) and its messages.

pub use crate::generated::fccontrol_ttrpc::{Firecracker, FirecrackerClient, create_firecracker};
pub use crate::generated::firecracker::*;
pub use crate::generated::types::{
    CNIConfiguration, FirecrackerBalloonDevice, FirecrackerDriveMount,
    FirecrackerMachineConfiguration, FirecrackerNetworkInterface, FirecrackerRateLimiter,
    FirecrackerRootDrive, FirecrackerTokenBucket, IPConfiguration, StaticNetworkConfiguration,
};
pub use crate::generated::vmevents::{VMStart, VMStop};

/// Topic of [`VMStart`], published when CreateVM succeeded.
pub const TOPIC_VM_START: &str = "/firecracker-vm/start";
/// Topic of [`VMStop`], published when the VM is gone.
pub const TOPIC_VM_STOP: &str = "/firecracker-vm/stop";
