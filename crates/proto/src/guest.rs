//! The guest protocol: ports, services and the announcement.
//!
//! The shim is the ttrpc client and the agent the server, on [`CONTROL_PORT`].
//! Services there: `containerd.task.v2.Task` ([`crate::task`]), `DriveMounter`,
//! `IOProxy`, the event getter, all as in the original, and our [`Agent`].

use serde::{Deserialize, Serialize};

pub use crate::generated::agent::{
    ConfigureRequest, ConfigureResponse, ExportUpperRequest, ExportUpperResponse, Mark,
    NextEventRequest, NextEventResponse, WaitProcessRequest, WaitProcessResponse,
};
pub use crate::generated::agent_ttrpc::{Agent, AgentClient, create_agent};
pub use crate::generated::drivemount::{MountDriveRequest, UnmountDriveRequest};
pub use crate::generated::drivemount_ttrpc::{
    DriveMounter, DriveMounterClient, create_drive_mounter,
};
pub use crate::generated::ioproxy::{
    AttachRequest as IoAttachRequest, StateRequest as IoStateRequest,
    StateResponse as IoStateResponse,
};
pub use crate::generated::ioproxy_ttrpc::{IoProxy, IoProxyClient, create_io_proxy};
pub use crate::generated::types::ExtraData;

/// vsock port of the agent's ttrpc server (the original's).
pub const CONTROL_PORT: u32 = 10789;
/// First port for stdio streams; three per process, counted upwards, never reused (the original's).
pub const STDIO_PORT_BASE: u32 = 11000;
/// Host port that the agent connects to when it serves, to say so ([`Announcement`]).
pub const ANNOUNCE_PORT: u32 = 9001;

/// ttrpc service and method of the event long-poll: request `Empty`, response `containerd.types.Envelope`.
pub const EVENT_GETTER_SERVICE: &str = "aws.firecracker.containerd.eventbridge.getter";
/// See [`EVENT_GETTER_SERVICE`].
pub const EVENT_GETTER_METHOD: &str = "GetEvent";

/// Directory in the guest below which every container has its bundle, `<dir>/<container id>`.
pub const BUNDLE_ROOT: &str = "/container";

/// Version of our part of the guest protocol. A shim and an agent whose numbers
/// differ refuse to work together; agents without [`Announcement`] are old ones.
pub const PROTOCOL: u32 = 1;

/// Type URL of an `Any` that holds [`ExtraData`]; a `type.googleapis.com/` prefix is accepted too.
pub const EXTRA_DATA_TYPE_URL: &str = "ExtraData";

/// What an agent can do beyond the original's, as listed in `ConfigureResponse.features`.
pub mod feature {
    /// Create mounts `rootfs` (guest paths) at `<bundle>/rootfs`, e.g. an overlay of mounted drives.
    pub const ROOTFS_MOUNTS: &str = "rootfs-mounts";
    /// The agent honours `ExtraData.HostListens`.
    pub const HOST_LISTENS: &str = "host-listens";
    /// UnmountDrive really unmounts and flushes before it answers.
    pub const UNMOUNT_FLUSHES: &str = "unmount-flushes";
    /// The agent has `Agent.NextEvent` and keeps events until they are acknowledged.
    pub const NUMBERED_EVENTS: &str = "numbered-events";
    /// The agent has `Agent.ExportUpper`.
    pub const EXPORT_UPPER: &str = "export-upper";
    /// The agent has `Agent.WaitProcess`.
    pub const WAIT_PROCESS: &str = "wait-process";
}

/// One line of JSON that the agent sends on [`ANNOUNCE_PORT`], then closes the
/// connection. At most [`Announcement::MAX_BYTES`] bytes, newline included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// [`PROTOCOL`] of the agent.
    pub protocol: u32,
    /// Version of the agent's binary, for messages.
    pub agent_version: String,
    /// Set when the agent cannot serve: why. It powers the VM off afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Announcement {
    /// Longest announcement that a host reads.
    pub const MAX_BYTES: usize = 4096;
}
