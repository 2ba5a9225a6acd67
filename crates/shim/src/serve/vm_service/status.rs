//! Status: what the VM is and does now.

use std::sync::{Arc, OnceLock};

use fc_client::api::InstanceState;
use fc_drives::{SlotInfo, SlotState};
use fc_errors::chain;
use fc_proto::task::api::Status;
use fc_proto::vm::{Slot, Span, StatusResponse, Task};

use crate::serve::shim::{Phase, Running, Shim};
use crate::serve::tasks;

/// The answer to Status. Only a VMM that runs is asked for anything, and it is bounded.
pub async fn status(shim: &Shim) -> StatusResponse {
    let vmm = shim.progress.vmm();
    let spec = shim.asked.get();
    let mut status = StatusResponse {
        shim_pid: std::process::id(),
        vmm_pid: vmm.as_ref().map_or(0, |vmm| vmm.pid),
        vmm: vmm
            .as_ref()
            .map_or_else(String::new, |vmm| vmm.path.display().to_string()),
        vmm_version: vmm.map_or_else(String::new, |vmm| vmm.version),
        created_unix_ns: time(&shim.created),
        running_unix_ns: time(&shim.came_up),
        vcpus: spec.map_or(0, |spec| spec.vcpus),
        memory_mib: spec.map_or(0, |spec| spec.memory_mib),
        tasks: task_list(shim),
        spans: shim.progress.spans().into_iter().map(span).collect(),
        ..StatusResponse::default()
    };
    let state = match shim.phase() {
        Phase::Waiting => "waiting",
        Phase::Booting => "booting",
        Phase::Running(running) => {
            add(&mut status, &running);
            state_of(&running).await
        }
        Phase::Failed(error) => {
            status.error = chain(&*error);
            "failed"
        }
        Phase::Gone(_) => {
            shim.end_reason().clone_into(&mut status.error);
            "ended"
        }
    };
    state.clone_into(&mut status.state);
    status
}

fn time(moment: &OnceLock<u64>) -> i64 {
    let nanoseconds = moment.get().copied().unwrap_or_default();
    i64::try_from(nanoseconds).unwrap_or(i64::MAX)
}

fn add(status: &mut StatusResponse, running: &Running) {
    let machine = &running.machine;
    let agent = machine.guest().version().unwrap_or_default();
    agent.clone_into(&mut status.agent_version);
    status.jailed = machine.is_jailed();
    status.slots = machine.drives().slots().into_iter().map(slot).collect();
}

/// Somebody may have paused it through the VMM's own socket, so that the VMM is asked.
async fn state_of(running: &Running) -> &'static str {
    match running.machine.vmm().describe_instance().await {
        Ok(info) if info.state == InstanceState::Paused => "paused",
        _ => "running",
    }
}

fn task_list(shim: &Shim) -> Vec<Task> {
    let task = |task: Arc<tasks::Task>| Task {
        id: task.id.clone(),
        status: word(task.init.status()).to_owned(),
        ..Task::default()
    };
    let mut tasks: Vec<_> = shim.tasks.all().into_iter().map(task).collect();
    tasks.sort_by(|a, b| a.id.cmp(&b.id));
    tasks
}

/// containerd's word for a status.
fn word(status: Status) -> &'static str {
    match status {
        Status::UNKNOWN => "unknown",
        Status::CREATED => "created",
        Status::RUNNING => "running",
        Status::STOPPED => "stopped",
        Status::PAUSED => "paused",
        Status::PAUSING => "pausing",
    }
}

fn slot(info: SlotInfo) -> Slot {
    let (state, problem) = match info.state {
        SlotState::Free => ("free", String::new()),
        SlotState::Busy => ("busy", String::new()),
        SlotState::Attached => ("attached", String::new()),
        SlotState::Quarantined(reason) => ("quarantined", reason),
    };
    let (owner, host_path) = info.used_by.map_or_else(Default::default, |user| {
        (user.owner, user.host_path.display().to_string())
    });
    Slot {
        drive_id: info.drive_id,
        name: info.file_name,
        read_only: info.read_only,
        state: state.to_owned(),
        owner,
        host_path,
        problem,
        ..Slot::default()
    }
}

fn span(span: fc_vm::machine::Span) -> Span {
    Span {
        name: span.name.to_owned(),
        start_unix_ns: span.start_unix_ns,
        duration_ns: u64::try_from(span.duration.as_nanos()).unwrap_or(u64::MAX),
        waits_for: span.waits_for.as_str().to_owned(),
        ..Span::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_of_a_vm_that_failed() {
        let shim = Shim::for_test();
        let status = status(&shim).await;
        assert_eq!((status.state.as_str(), status.vmm_pid), ("waiting", 0));
        assert_eq!(status.shim_pid, std::process::id());
        shim.fail_for_test();
        let status = super::status(&shim).await;
        assert_eq!(status.state, "failed");
        assert_eq!(status.error, "the VM was stopped before it ran");
    }
}
