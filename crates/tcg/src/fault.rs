//! Every way a request can fail. The texts are part of the API: clients match on them, so they are those of
//! Firecracker 1.15 wherever it has the same failure.

use std::io;

use crate::boot_args::BootArgsError;
use crate::kernel_image::KernelImageError;
use crate::mmds::{MmdsConfigFault, MmdsFault};
use crate::model::{MacAddress, MachineConfigError};
use crate::qemu::QemuError;

/// A failed request: HTTP status 400, or 413 for [`Fault::MmdsLimitExceeded`], and this text as `fault_message`, but for
/// [`Fault::PayloadTooLarge`] in a body of its own kind.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Fault {
    // The request itself.
    #[error("The ID cannot be empty.")]
    EmptyId,
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    InvalidId,
    #[error("The id from the path does not match the id from the body!")]
    IdMismatch,
    #[error("The id from the path [{path}] does not match the id from the body [{body}]!")]
    InterfaceIdMismatch { path: String, body: String },
    #[error("Unrecognized {method} request path `{path}`.")]
    UnknownPath { method: &'static str, path: String },
    #[error("Invalid request method and/or path: {method} {path}.")]
    InvalidPathMethod { method: String, path: String },
    #[error("GET request cannot have a body.")]
    GetWithBody,
    #[error("Empty {0} request.")]
    EmptyBody(String),
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[source] serde_json::Error),
    #[error(
        "Request payload with size {size} is larger than the limit of {limit} allowed by server."
    )]
    PayloadTooLarge { size: u64, limit: usize },
    #[error("Cannot read the request's body: {0}")]
    Body(String),

    // The state of the VM.
    #[error("The requested operation is not supported after starting the microVM.")]
    NotSupportedPostBoot,
    #[error("The requested operation is not supported before starting the microVM.")]
    NotSupportedPreBoot,
    #[error("The requested operation is not supported: {0}")]
    NotSupported(String),

    // The parts of the configuration.
    #[error("Boot source error: {0}")]
    BootSource(#[from] BootSourceFault),
    #[error("Drive config error: {0}")]
    Drive(#[from] DriveFault),
    #[error("Machine config error: {0}")]
    Machine(#[from] MachineConfigError),
    #[error("Vsock config error: {0}")]
    Vsock(#[from] VsockFault),
    #[error("Network config error: {0}")]
    Network(#[from] NetworkFault),
    #[error("Balloon config error: {0}")]
    Balloon(#[from] BalloonFault),
    #[error("Balloon update error: {0}")]
    BalloonUpdate(#[source] BalloonDeviceFault),
    #[error("Logger error: Failed to open target file: {0}")]
    Logger(#[source] io::Error),
    #[error("Metrics error: Cannot initialize the metrics system due to bad user input: {0}")]
    Metrics(String),
    #[error("MMDS error: {0}")]
    Mmds(#[source] MmdsFault),
    #[error("MMDS limit exceeded error: {0}")]
    MmdsLimitExceeded(#[source] MmdsFault),
    #[error("MMMDS config error: {0}")]
    MmdsConfig(#[from] MmdsConfigFault),
    #[error("Start microvm error: {0}")]
    Start(#[from] StartFault),
    #[error("Internal VMM error: {0}")]
    Internal(#[source] QemuError),
    #[error("Internal VMM error: {0}")]
    BalloonRead(#[source] BalloonDeviceFault),
    #[error("Internal VMM error: Metrics error: {0}")]
    FlushMetrics(#[source] io::Error),
}

impl From<MmdsFault> for Fault {
    fn from(fault: MmdsFault) -> Self {
        match fault {
            MmdsFault::LimitExceeded => Self::MmdsLimitExceeded(fault),
            MmdsFault::NotInitialized => Self::Mmds(fault),
        }
    }
}

/// `PUT /boot-source`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BootSourceFault {
    #[error("The kernel file cannot be opened: {0}")]
    KernelPath(#[source] io::Error),
    #[error("The initrd file cannot be opened due to invalid path or invalid permissions. {0}")]
    InitrdPath(#[source] io::Error),
    #[error("The kernel command line is invalid: {0}")]
    CommandLine(#[from] BootArgsError),
}

/// `PUT` and `PATCH /drives`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum DriveFault {
    #[error("A root block device already exists!")]
    RootAlreadyAdded,
    #[error("Unable to create the virtio block device: {0}")]
    Create(#[source] BlockFault),
    #[error("Unable to patch the block device: {0} Please verify the request arguments.")]
    Update(#[source] UpdateFault),
}

/// A drive's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BlockFault {
    #[error("Invalid block config.")]
    InvalidConfig,
    #[error("Virtio backend error: Error manipulating the backing file: {error} {path}")]
    BackingFile {
        #[source]
        error: io::Error,
        path: String,
    },
    #[error("{0} is not offered by firecracker-tcg.")]
    NotOffered(&'static str),
}

/// A running drive cannot be changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum UpdateFault {
    #[error("Failed perform action on device: Device not found")]
    DeviceNotFound,
    #[error("Block: {0}")]
    Block(#[from] BlockFault),
    #[error("Block: Running method expected different backend.")]
    DifferentBackend,
    #[error("{0}")]
    Qemu(#[from] QemuError),
}

/// `PUT /vsock`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum VsockFault {
    #[error(
        "Cannot create backend for vsock device: Error binding to the host-side Unix socket: {0}"
    )]
    Bind(#[source] io::Error),
    #[error("Cannot create backend for vsock device: {0}")]
    Backend(#[source] fc_vhost_vsock::VsockError),
}

/// `PUT` and `PATCH /network-interfaces`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum NetworkFault {
    #[error("The MAC address is already in use: {0}")]
    MacInUse(MacAddress),
    #[error("Could not create the network device: Open tap device failed: {0}")]
    Create(#[from] TapFault),
    #[error(
        "firecracker-tcg can change an interface's rate limiters only if there was one before the start: give one that \
         does not limit, of size 0."
    )]
    LimiterTooLate,
    #[error("Unable to update the net device: {0}")]
    Update(#[source] UpdateFault),
}

/// A tap device cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TapFault {
    #[error("Couldn't open /dev/net/tun: {0}")]
    OpenTun(#[source] io::Error),
    #[error("Invalid interface name")]
    InvalidName,
    #[error(
        "Error while creating ifreq structure: {error}. Invalid TUN/TAP Backend provided by {name}. Check our \
         documentation on setting up the network devices."
    )]
    Attach {
        #[source]
        error: io::Error,
        name: String,
    },
}

/// `PUT` and `GET /balloon` before the start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BalloonFault {
    #[error("No balloon device found.")]
    DeviceNotFound,
    #[error("Amount of pages requested is too large.")]
    TooManyPagesRequested,
    #[error("{0} is not offered by firecracker-tcg.")]
    NotOffered(&'static str),
}

/// The balloon of a running guest cannot be changed or read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BalloonDeviceFault {
    #[error("Failed perform action on device: Device not found")]
    DeviceNotFound,
    #[error("Balloon: Requested memory should be less than {0}MiB")]
    TooMuchMemoryRequested(u32),
    #[error("Balloon: Received stats query when stats are disabled.")]
    StatisticsDisabled,
    #[error("Balloon: Statistics cannot be enabled/disabled after activation.")]
    StatisticsStateChange,
    #[error("{0}")]
    Qemu(#[from] QemuError),
}

/// `InstanceStart`.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum StartFault {
    #[error("Cannot start microvm without kernel configuration.")]
    MissingKernelConfig,
    #[error("Invalid kernel command line: {0}")]
    CommandLine(#[from] BootArgsError),
    #[error(
        "System configuration error: Cannot load kernel due to invalid memory configuration or invalid kernel image: {path}: {error}"
    )]
    Kernel {
        path: String,
        #[source]
        error: KernelImageError,
    },
    #[error(
        "Could not attach device: {count} virtio devices are configured, firecracker-tcg has room for {room}."
    )]
    TooManyDevices { count: usize, room: usize },
    #[error("Cannot prepare the vsock device: {0}")]
    Vsock(#[source] VsockFault),
    #[error("Cannot watch the vsock device: {0}")]
    WatchVsock(#[source] io::Error),
    #[error("{0}")]
    Qemu(#[from] QemuError),
}
