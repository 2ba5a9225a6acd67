//! Method, path and body of a request, checked and typed in Firecracker's order of checks.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::fault::Fault;
use crate::metrics;
use crate::model::{
    BalloonConfig, BalloonStatisticsUpdate, BalloonUpdate, BootSourceConfig, DriveConfig,
    DriveUpdate, EntropyConfig, LoggerConfig, MachineConfig, MachineConfigUpdate, MetricsConfig,
    MmdsConfig, MmdsVersion, NetworkConfig, NetworkUpdate, SerialConfig, VmStateRequest, VmUpdate,
    VsockConfig,
};

/// What a well-formed request asks for.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Action {
    GetInstanceInfo,
    GetVersion,
    GetVmConfig,
    GetMachineConfig,
    GetBalloon,
    GetBalloonStatistics,
    PutBootSource(BootSourceConfig),
    UpdateMachine(MachineConfigUpdate),
    PutDrive(DriveConfig),
    PatchDrive(DriveUpdate),
    PutVsock(VsockConfig),
    PutEntropy(EntropyConfig),
    PutNetwork(NetworkConfig),
    PatchNetwork(NetworkUpdate),
    PutBalloon(BalloonConfig),
    PatchBalloon(BalloonUpdate),
    PatchBalloonStatistics(BalloonStatisticsUpdate),
    PutSerial(SerialConfig),
    PutLogger(LoggerConfig),
    PutMetrics(MetricsConfig),
    GetMmds,
    PutMmds(Value),
    PatchMmds(Value),
    PutMmdsConfig(MmdsConfig),
    InstanceStart,
    FlushMetrics,
    SendCtrlAltDel,
    Pause,
    Resume,
    /// A call of the API description that firecracker-tcg does not have: method and path.
    NotOffered(String),
}

impl Action {
    /// Whether the guest must not have started; otherwise it must have.
    #[must_use]
    pub fn only_before_start(&self) -> bool {
        matches!(
            self,
            Self::PutBootSource(_)
                | Self::UpdateMachine(_)
                | Self::PutDrive(_)
                | Self::PutVsock(_)
                | Self::PutEntropy(_)
                | Self::PutNetwork(_)
                | Self::PutBalloon(_)
                | Self::PutSerial(_)
                | Self::PutLogger(_)
                | Self::PutMetrics(_)
                | Self::PutMmdsConfig(_)
                | Self::InstanceStart
        )
    }

    /// What the request has set that is deprecated, for the log.
    #[must_use]
    pub fn deprecated(&self) -> Option<&'static str> {
        match self {
            Self::PutVsock(config) if config.vsock_id.is_some() => {
                Some("vsock_id field is deprecated.")
            }
            Self::UpdateMachine(update) if update.cpu_template.is_some() => {
                Some("cpu_template field is deprecated.")
            }
            Self::PutMmdsConfig(config) if config.version == MmdsVersion::V1 => {
                Some("V1 is deprecated. Use V2 instead.")
            }
            _ => None,
        }
    }
}

#[derive(Deserialize)]
enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

/// `PUT /actions`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionBody {
    action_type: ActionType,
}

/// Types a request. An empty `body` is none.
///
/// # Errors
/// The path, the id or the body is not as the API description says.
pub fn parse(method: &str, path: &str, body: &[u8]) -> Result<Action, Fault> {
    let mut parts = path.trim_start_matches('/').split_terminator('/');
    let resource = parts.next().unwrap_or("");
    let rest = parts.next();
    let not_offered = || Ok(Action::NotOffered(format!("{method} {path}")));

    match (method, resource, body.is_empty()) {
        ("GET", "", true) => count(
            "get_api_requests",
            "instance_info_count",
            Action::GetInstanceInfo,
        ),
        ("GET", "version", true) => {
            count("get_api_requests", "vmm_version_count", Action::GetVersion)
        }
        ("GET", "vm", true) if rest == Some("config") => Ok(Action::GetVmConfig),
        ("GET", "machine-config", true) => count(
            "get_api_requests",
            "machine_cfg_count",
            Action::GetMachineConfig,
        ),
        ("GET", "balloon", true) => get_balloon(rest).unwrap_or_else(not_offered),
        ("GET", "mmds", true) => count("get_api_requests", "mmds_count", Action::GetMmds),
        ("GET", "hotplug", true) if rest == Some("memory") => not_offered(),
        ("GET", _, false) => Err(Fault::GetWithBody),

        ("PUT", "actions", false) => put("actions_count", "actions_fails", || {
            let ActionBody { action_type } = decode(body)?;
            Ok(match action_type {
                ActionType::FlushMetrics => Action::FlushMetrics,
                ActionType::InstanceStart => Action::InstanceStart,
                ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
            })
        }),
        ("PUT", "boot-source", false) => put("boot_source_count", "boot_source_fails", || {
            decode(body).map(Action::PutBootSource)
        }),
        ("PUT", "drives", false) => put("drive_count", "drive_fails", || {
            let id = checked_id(rest)?;
            let config: DriveConfig = decode(body)?;
            same_id(id, &config.drive_id)?;
            Ok(Action::PutDrive(config))
        }),
        ("PUT", "logger", false) => put("logger_count", "logger_fails", || {
            decode(body).map(Action::PutLogger)
        }),
        ("PUT", "machine-config", false) => put("machine_cfg_count", "machine_cfg_fails", || {
            decode::<MachineConfig>(body).map(|config| Action::UpdateMachine(config.into()))
        }),
        ("PUT", "metrics", false) => put("metrics_count", "metrics_fails", || {
            decode(body).map(Action::PutMetrics)
        }),
        ("PUT", "vsock", false) => put("vsock_count", "vsock_fails", || {
            decode(body).map(Action::PutVsock)
        }),
        ("PUT", "network-interfaces", false) => put("network_count", "network_fails", || {
            let id = checked_id(rest)?;
            let config: NetworkConfig = decode(body)?;
            same_interface(id, &config.iface_id)?;
            Ok(Action::PutNetwork(config))
        }),
        ("PUT", "serial", false) => put("serial_count", "serial_fails", || {
            decode(body).map(Action::PutSerial)
        }),
        ("PUT", "balloon", false) => decode(body).map(Action::PutBalloon),
        ("PUT", "entropy", false) => decode(body).map(Action::PutEntropy),
        ("PUT", "mmds", false) => put("mmds_count", "mmds_fails", || match rest {
            None => decode(body).map(Action::PutMmds),
            Some("config") => decode(body).map(Action::PutMmdsConfig),
            Some(other) => Err(unknown_path("PUT", other)),
        }),
        ("PUT", "cpu-config" | "pmem" | "snapshot", false) => not_offered(),
        ("PUT", "hotplug", false) if rest == Some("memory") => not_offered(),

        ("PATCH", "balloon", _) if rest == Some("hinting") => not_offered(),
        ("PATCH", "balloon", false) if rest == Some("statistics") => {
            decode(body).map(Action::PatchBalloonStatistics)
        }
        ("PATCH", "balloon", false) => decode(body).map(Action::PatchBalloon),
        ("PATCH", "drives", false) => patch("drive_count", "drive_fails", || {
            let id = checked_id(rest)?;
            let update: DriveUpdate = decode(body)?;
            same_id(id, &update.drive_id)?;
            Ok(Action::PatchDrive(update))
        }),
        ("PATCH", "machine-config", false) => {
            patch("machine_cfg_count", "machine_cfg_fails", || {
                let update: MachineConfigUpdate = decode(body)?;
                if update == MachineConfigUpdate::default() {
                    return Err(Fault::EmptyBody(method.to_owned()));
                }
                Ok(Action::UpdateMachine(update))
            })
        }
        ("PATCH", "vm", false) => {
            let VmUpdate { state } = decode(body)?;
            Ok(match state {
                VmStateRequest::Paused => Action::Pause,
                VmStateRequest::Resumed => Action::Resume,
            })
        }
        ("PATCH", "network-interfaces", false) => patch("network_count", "network_fails", || {
            let id = checked_id(rest)?;
            let update: NetworkUpdate = decode(body)?;
            same_interface(id, &update.iface_id)?;
            Ok(Action::PatchNetwork(update))
        }),
        ("PATCH", "mmds", false) => patch("mmds_count", "mmds_fails", || {
            decode(body).map(Action::PatchMmds)
        }),
        ("PATCH", "hotplug", false) if rest == Some("memory") => not_offered(),
        ("PUT" | "PATCH", _, true) => Err(Fault::EmptyBody(method.to_owned())),
        _ => Err(Fault::InvalidPathMethod {
            method: method.to_owned(),
            path: resource.to_owned(),
        }),
    }
}

/// `None` for what is not offered.
fn get_balloon(rest: Option<&str>) -> Option<Result<Action, Fault>> {
    match rest {
        None => Some(Ok(Action::GetBalloon)),
        Some("statistics") => Some(Ok(Action::GetBalloonStatistics)),
        Some("hinting") => None,
        Some(other) => Some(Err(unknown_path("GET", other))),
    }
}

fn unknown_path(method: &'static str, path: &str) -> Fault {
    Fault::UnknownPath {
        method,
        path: path.to_owned(),
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(Fault::Json)
}

fn checked_id(id: Option<&str>) -> Result<&str, Fault> {
    let id = id.filter(|id| !id.is_empty()).ok_or(Fault::EmptyId)?;
    if id.chars().all(|c| c == '_' || c.is_alphanumeric()) {
        Ok(id)
    } else {
        Err(Fault::InvalidId)
    }
}

fn same_id(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        Ok(())
    } else {
        Err(Fault::IdMismatch)
    }
}

fn same_interface(path: &str, body: &str) -> Result<(), Fault> {
    if path == body {
        Ok(())
    } else {
        Err(Fault::InterfaceIdMismatch {
            path: path.to_owned(),
            body: body.to_owned(),
        })
    }
}

fn count(group: &'static str, name: &'static str, action: Action) -> Result<Action, Fault> {
    metrics::add(group, name);
    Ok(action)
}

fn put(
    count: &'static str,
    fails: &'static str,
    parse: impl FnOnce() -> Result<Action, Fault>,
) -> Result<Action, Fault> {
    metrics::add("put_api_requests", count);
    parse().inspect_err(|_| metrics::add("put_api_requests", fails))
}

fn patch(
    count: &'static str,
    fails: &'static str,
    parse: impl FnOnce() -> Result<Action, Fault>,
) -> Result<Action, Fault> {
    metrics::add("patch_api_requests", count);
    parse().inspect_err(|_| metrics::add("patch_api_requests", fails))
}

#[cfg(test)]
mod tests;
