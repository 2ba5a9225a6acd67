//! The VM's end, asked for or not, and what it takes with it.

use std::sync::Arc;
use std::time::Duration;

use fc_client::VmmEnd;
use fc_proto::containerd::events::task::TaskExit;
use fc_proto::control::{TOPIC_VM_STOP, VMStop};
use fc_proto::protobuf::MessageField;
use fc_proto::task::api::Status;
use fc_vm::machine::chain;
use fc_vm::state;

use super::error::{CallError, StartError};
use super::life::Origin;
use super::process::{Exit, Process};
use super::shim::{Phase, Running, Shim};

/// Bound on a stop when the caller names none.
pub const DEFAULT_BOUND: Duration = Duration::from_secs(5);
/// Bound on the stop that a task's Shutdown means: containerd waits 3 s for its answer.
pub const SHUTDOWN_BOUND: Duration = Duration::from_millis(2500);
/// How long clients may keep their connections after the shim's work is done: those that have their last
/// answer yet to read close them, and containerd keeps its own for as long as it has a task here.
pub const LAST_ANSWER_BOUND: Duration = Duration::from_millis(500);
/// How long containerd may take over the last events.
pub const FLUSH_BOUND: Duration = Duration::from_secs(2);
/// How long containerd may take to say Shutdown after a task's end.
const SHUTDOWN_EXPECTED_BOUND: Duration = Duration::from_secs(10);
/// How long tasks of a VM that has ended may stay to be deleted.
const DELETE_BOUND: Duration = Duration::from_secs(2);
/// How long the reason of a failed start is kept for somebody to ask.
const FAILURE_BOUND: Duration = Duration::from_secs(20);

/// Ends the VM and waits until nothing of it is left but this process. One that is still on its way is
/// given up: nothing runs in it yet.
///
/// # Errors
/// When the VMM had to be killed; the VM has ended all the same.
pub async fn stop(shim: &Shim, bound: Duration) -> Result<(), CallError> {
    shim.tasks.close();
    let result = match shim.phase() {
        // Nobody can ask for it any more.
        Phase::Waiting if shim.claim_creation() => {
            clean(shim);
            shim.set_phase(Phase::Failed(Arc::new(StartError::Stopped)));
            shim.end();
            Ok(())
        }
        Phase::Waiting | Phase::Booting => {
            shim.cancel_start();
            // It may have come up in this moment.
            match shim.vm().await {
                Ok(running) => running.machine.stop(bound).await,
                Err(_) => Ok(()),
            }
        }
        Phase::Running(running) => running.machine.stop(bound).await,
        Phase::Failed(_) | Phase::Gone(_) => Ok(()),
    };
    shim.gone().await;
    result.map_err(|source| CallError::Forced {
        vm_id: shim.dir.vm_id().to_owned(),
        source,
    })
}

/// Ends a VM that nobody knows of: there is nothing in it to be ended in good order.
pub async fn discard(shim: &Shim) {
    tracing::warn!("Nobody waits for the VM any more, so it ends");
    if let Err(error) = stop(shim, Duration::ZERO).await {
        tracing::debug!("{}", chain(&error));
    }
}

/// Whether a VM that ends with its last task has none; it takes no more tasks then.
pub fn is_idle(shim: &Shim, running: &Running) -> bool {
    running.machine.spec().exit_after_all_tasks && shim.tasks.close_if_empty()
}

/// After a task's end: containerd says Shutdown next, unless it was killed meanwhile or its
/// client gave up. A VM that is to end with its last task does not wait for that for ever.
pub fn expect_shutdown(shim: &Arc<Shim>, running: &Arc<Running>) {
    if !running.machine.spec().exit_after_all_tasks {
        return;
    }
    let shim = Arc::clone(shim);
    let running = Arc::downgrade(running);
    tokio::spawn(async move {
        tokio::time::sleep(SHUTDOWN_EXPECTED_BOUND).await;
        let idle = running.upgrade().is_some_and(|r| is_idle(&shim, &r));
        if idle && let Err(error) = stop(&shim, DEFAULT_BOUND).await {
            tracing::warn!("{}", chain(&error));
        }
    });
}

/// What the end of the VMM leaves to be done: news for whoever waits, and an empty host.
pub async fn after_end(shim: &Arc<Shim>, running: &Running, end: &VmmEnd) {
    shim.tasks.close();
    let tasks = shim.tasks.all();
    if tasks.is_empty() {
        tracing::info!("The VM has ended ({})", end.status);
    } else {
        tracing::warn!("The VM ended under its tasks: {end}");
    }
    shim.timeline.vm("vm_stopped");
    let pid = running.machine.vmm_pid();
    let mut awaited = false;
    for process in tasks.iter().flat_map(|task| task.processes()) {
        awaited |= process.is_awaited();
        killed(shim, &process, pid);
    }
    let event = VMStop {
        VMID: shim.dir.vm_id().to_owned(),
        ..VMStop::default()
    };
    shim.events.publish(TOPIC_VM_STOP, "VMStop", &event);
    for error in running.machine.close().await {
        tracing::error!("{}", chain(&error));
    }
    clean(shim);
    shim.set_phase(Phase::Gone(running.machine.console()));
    if awaited {
        // Whoever waits learns of the tasks' ends now, and deletes them.
        let _ = tokio::time::timeout(DELETE_BOUND, shim.tasks.empty()).await;
    }
    shim.end();
}

/// What a start that failed leaves to be done. The shim stays until somebody was told why.
pub async fn after_failure(shim: &Arc<Shim>, error: StartError, origin: Origin) {
    tracing::error!("The VM did not start: {}", chain(&error));
    let known = origin == Origin::Call || matches!(error, StartError::Stopped);
    if known {
        // First, so that the same id can be used again once the caller is told.
        clean(shim);
    }
    shim.set_phase(Phase::Failed(Arc::new(error)));
    if !known {
        let _ = tokio::time::timeout(FAILURE_BOUND, shim.failure_told()).await;
    }
    shim.tasks.close();
    let _ = tokio::time::timeout(DELETE_BOUND, shim.tasks.empty()).await;
    clean(shim);
    shim.end();
}

/// A process whose VM is gone: it was killed, as far as anybody can tell.
fn killed(shim: &Shim, process: &Process, pid: u32) {
    let ran = matches!(process.status(), Status::RUNNING | Status::PAUSED);
    let exit = Exit::killed();
    if !process.set_exit(exit.clone()) || !ran {
        return;
    }
    let id = if process.exec_id.is_empty() {
        &process.task_id
    } else {
        &process.exec_id
    };
    let event = TaskExit {
        container_id: process.task_id.clone(),
        id: id.clone(),
        pid,
        exit_status: exit.status,
        exited_at: MessageField::some(exit.at),
        ..TaskExit::default()
    };
    shim.events
        .publish("/tasks/exit", "containerd.events.TaskExit", &event);
}

/// Removes the VM's sockets and directory. The lock goes last, with the directory.
fn clean(shim: &Shim) {
    for error in state::undo(&shim.dir) {
        tracing::error!("{}", chain(&error));
    }
}
