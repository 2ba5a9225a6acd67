use serde::{Deserialize, Serialize};

/// State of the VM as `GET /` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum VmState {
    /// InstanceStart has not succeeded yet.
    #[default]
    #[serde(rename = "Not started")]
    NotStarted,
    /// The guest runs.
    Running,
    /// The guest's processors stand still.
    Paused,
}

/// Answer to `GET /`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstanceInfo {
    /// `--id`.
    pub id: String,
    /// Where it is in its life.
    pub state: VmState,
    /// Version of Firecracker whose API this follows.
    pub vmm_version: String,
    /// `Firecracker`: programs written for it look here.
    pub app_name: String,
}

/// What `PATCH /vm` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum VmStateRequest {
    /// Stop the guest's processors.
    Paused,
    /// Let them run.
    Resumed,
}

/// `PATCH /vm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// The state wanted.
    pub state: VmStateRequest,
}
