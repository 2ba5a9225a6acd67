//! `vm info`: what a VM is and does.

use fc_proto::control::{GetVMInfoRequest, GetVMInfoResponse};
use fc_proto::vm::StatusResponse;
use serde::Serialize;

use super::call_error;
use crate::error::CtlError;
use crate::host::{Host, status};
use crate::output::{ago, table};

#[derive(Serialize)]
struct Info {
    id: String,
    namespace: String,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    shim_pid: u32,
    vmm_pid: u32,
    vmm: String,
    vmm_version: String,
    agent_version: String,
    jailed: bool,
    created_unix_ns: i64,
    running_unix_ns: i64,
    vcpus: u32,
    memory_mib: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    paths: Option<Paths>,
    tasks: Vec<Task>,
    drives: Vec<Drive>,
    start: Vec<Span>,
}

#[derive(Serialize)]
struct Paths {
    api_socket: String,
    vsock: String,
    log_fifo: String,
    metrics_fifo: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cgroup: String,
}

#[derive(Serialize)]
struct Task {
    id: String,
    status: String,
}

#[derive(Serialize)]
struct Drive {
    id: String,
    name: String,
    read_only: bool,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    owner: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    host_path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
}

#[derive(Serialize)]
struct Span {
    name: String,
    milliseconds: f64,
    /// `vmm`, `guest` or `oci-runtime`; empty for our own work.
    waits_for: String,
}

/// Shows a VM.
///
/// # Errors
/// When there is none, or its shim cannot be asked.
pub async fn run(host: &Host, id: &str) -> Result<(), CtlError> {
    let vm = host.find(id)?;
    let status = status(&vm).await?;
    // GetVMInfo waits for a VM that boots, and fails for one that did not: neither has paths to show.
    let paths = if matches!(status.state.as_str(), "running" | "paused") {
        let request = GetVMInfoRequest {
            VMID: id.to_owned(),
            ..GetVMInfoRequest::default()
        };
        let control = host.control().await?;
        let answer = control.client.get_vm_info(host.context(), &request).await;
        Some(paths(answer.map_err(call_error)?))
    } else {
        None
    };
    let info = info(host, id, status, paths);
    host.output.print(&info, text);
    Ok(())
}

fn paths(answer: GetVMInfoResponse) -> Paths {
    Paths {
        api_socket: answer.SocketPath,
        vsock: answer.VSockPath,
        log_fifo: answer.LogFifoPath,
        metrics_fifo: answer.MetricsFifoPath,
        cgroup: answer.CgroupPath,
    }
}

fn info(host: &Host, id: &str, status: StatusResponse, paths: Option<Paths>) -> Info {
    let tasks = status.tasks.into_iter().map(|task| Task {
        id: task.id,
        status: task.status,
    });
    let drives = status.slots.into_iter().map(|slot| Drive {
        id: slot.drive_id,
        name: slot.name,
        read_only: slot.read_only,
        state: slot.state,
        owner: slot.owner,
        host_path: slot.host_path,
        problem: slot.problem,
    });
    let start = status.spans.into_iter().map(|span| Span {
        name: span.name,
        milliseconds: std::time::Duration::from_nanos(span.duration_ns).as_secs_f64() * 1e3,
        waits_for: span.waits_for,
    });
    Info {
        id: id.to_owned(),
        namespace: host.namespace.clone(),
        state: status.state,
        error: status.error,
        shim_pid: status.shim_pid,
        vmm_pid: status.vmm_pid,
        vmm: status.vmm,
        vmm_version: status.vmm_version,
        agent_version: status.agent_version,
        jailed: status.jailed,
        created_unix_ns: status.created_unix_ns,
        running_unix_ns: status.running_unix_ns,
        vcpus: status.vcpus,
        memory_mib: status.memory_mib,
        paths,
        tasks: tasks.collect(),
        drives: drives.collect(),
        start: start.collect(),
    }
}

fn text(vm: &Info) -> String {
    let mut facts = vec![
        ("VM", format!("{} in namespace {}", vm.id, vm.namespace)),
        ("state", vm.state.clone()),
        ("size", format!("{} vCPUs, {} MiB", vm.vcpus, vm.memory_mib)),
        ("created", format!("{} ago", ago(vm.created_unix_ns))),
        (
            "VMM",
            format!("{} {}, process {}", vm.vmm, vm.vmm_version, vm.vmm_pid),
        ),
        ("jailed", if vm.jailed { "yes" } else { "no" }.to_owned()),
        ("shim", format!("process {}", vm.shim_pid)),
        (
            "agent",
            if vm.agent_version.is_empty() {
                "of firecracker-containerd".to_owned()
            } else {
                vm.agent_version.clone()
            },
        ),
    ];
    if !vm.error.is_empty() {
        facts.insert(2, ("error", vm.error.clone()));
    }
    if let Some(paths) = &vm.paths {
        facts.push(("API socket", paths.api_socket.clone()));
        facts.push(("vsock", paths.vsock.clone()));
        facts.push(("log", paths.log_fifo.clone()));
        facts.push(("metrics", paths.metrics_fifo.clone()));
        if !paths.cgroup.is_empty() {
            facts.push(("cgroup", paths.cgroup.clone()));
        }
    }
    let rows: Vec<Vec<String>> = facts
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    let mut text = table(&rows);
    section(&mut text, &["TASK", "STATUS"], &vm.tasks, |task| {
        vec![task.id.clone(), task.status.clone()]
    });
    let head = ["DRIVE", "ACCESS", "STATE", "OWNER", "HOST PATH", "PROBLEM"];
    section(&mut text, &head, &vm.drives, |drive| {
        vec![
            drive.name.clone(),
            if drive.read_only { "ro" } else { "rw" }.to_owned(),
            drive.state.clone(),
            drive.owner.clone(),
            drive.host_path.clone(),
            drive.problem.clone(),
        ]
    });
    section(
        &mut text,
        &["START", "MS", "WAITS FOR"],
        &vm.start,
        |span| {
            vec![
                span.name.clone(),
                format!("{:.1}", span.milliseconds),
                span.waits_for.clone(),
            ]
        },
    );
    text
}

fn section<T>(text: &mut String, head: &[&str], items: &[T], row: impl Fn(&T) -> Vec<String>) {
    if items.is_empty() {
        return;
    }
    let head = head.iter().map(|&word| word.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(items.iter().map(row)).collect();
    text.push('\n');
    text.push_str(&table(&rows));
}
