//! The machine, how it boots, and its states.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `/machine-config`: processors and memory. Before boot only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Virtual processors, 1 to 32; with `smt`, 1 or an even number.
    pub vcpu_count: u32,
    /// Memory in MiB.
    pub mem_size_mib: u32,
    /// Simultaneous multithreading; x86 only. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// A built-in CPU template: `C3`, `T2`, `T2S`, `T2CL`, `T2A`, `V1N1` or `None`. Default `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// Whether to track dirty pages, for diff snapshots. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// What backs the memory: `None` or `2M`. Default `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}

impl MachineConfig {
    /// `vcpu_count` processors and `mem_size_mib` MiB, the rest as the VMM's defaults are.
    #[must_use]
    pub fn new(vcpu_count: u32, mem_size_mib: u32) -> Self {
        Self {
            vcpu_count,
            mem_size_mib,
            smt: None,
            cpu_template: None,
            track_dirty_pages: None,
            huge_pages: None,
        }
    }
}

/// `/boot-source`. Before boot only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSource {
    /// The kernel's file.
    pub kernel_image_path: String,
    /// The initrd's file. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// The kernel's command line. Default: Firecracker's own
    /// (`reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// `PUT /actions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// What to do.
    pub action_type: ActionType,
}

/// Something a VMM does once, when asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActionType {
    /// Writes the metrics now.
    FlushMetrics,
    /// Boots the guest.
    InstanceStart,
    /// Presses Ctrl, Alt and Del; x86 only.
    SendCtrlAltDel,
}

/// `PATCH /vm`: pauses or resumes a running VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmUpdate {
    /// The state to get to.
    pub state: VmState,
}

/// A state that a booted VM can be put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Its processors stand still.
    Paused,
    /// Its processors run.
    Resumed,
}

/// `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceInfo {
    /// The VMM's name: `Firecracker`.
    pub app_name: String,
    /// The VM's id, from the VMM's command line.
    pub id: String,
    /// Its state.
    pub state: InstanceState,
    /// The VMM's version.
    pub vmm_version: String,
}

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceState {
    /// It was not booted yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
}

impl fmt::Display for InstanceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "not started",
            Self::Running => "running",
            Self::Paused => "paused",
        })
    }
}

/// `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirecrackerVersion {
    /// The VMM's version, such as `1.15.0`.
    pub firecracker_version: String,
}
