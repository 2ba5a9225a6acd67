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

/// Key of a request's metadata: the gRPC address of the containerd that the caller means. Ours; a
/// daemon that serves another containerd refuses the request with `FailedPrecondition`.
pub const CONTAINERD_ADDRESS_KEY: &str = "aws.firecracker.containerd-address";
