//! Delete: a process and, with a container's first one, all that the container has.

use std::sync::Arc;
use std::time::Duration;

use fc_proto::protobuf::MessageField;
use fc_proto::task::api::{DeleteRequest, DeleteResponse};
use fc_proto::ttrpc::{Code, Error as RpcError};

use super::create::lost;
use super::drives::detach;
use super::error::CallError;
use super::process::{Exit, Process};
use super::shim::{Running, Shim};
use super::stop;
use super::tasks::Task;

/// How long the guest may take to tell that a task was deleted, after it was. What it tells later is lost.
const EVENT_BOUND: Duration = Duration::from_secs(10);

/// Deletes an exec, or a container. All of its output has reached the host then.
///
/// # Errors
/// The guest's refusal; nothing has changed then.
pub async fn delete(shim: &Arc<Shim>, request: DeleteRequest) -> Result<DeleteResponse, CallError> {
    let task = shim.tasks.get_settled(&request.id).await?;
    let process = task.process(&request.exec_id)?;
    let running = match shim.reachable().await {
        Ok(running) => Some(running),
        Err(_) => {
            // It may still be ending, with the container's files behind its drives.
            shim.gone().await;
            None
        }
    };
    if let (Some(running), Some(write_back), true) =
        (&running, &task.write_back, request.exec_id.is_empty())
    {
        // Before the guest takes the container's disk apart. Should it fail, the task stays as it is, for
        // another attempt.
        write_back.run_last(shim, running, &task.id).await?;
    }
    let (guest_pid, exit) = match &running {
        Some(running) => delete_in(shim, running, &process, &request).await?,
        // The VM's end was the process's.
        None => (0, process.exit().unwrap_or_else(Exit::killed)),
    };
    if let Some(io) = process.take_io() {
        io.finish().await;
    }
    // Not before: somebody else may wait for it, and read no more once told.
    process.set_exit(exit.clone());
    if request.exec_id.is_empty() {
        remove(shim, running.as_deref(), &task).await;
        if let Some(running) = &running {
            stop::expect_shutdown(shim, running);
        }
    } else {
        task.remove_exec(&request.exec_id);
    }
    let pid = match &running {
        Some(running) if request.exec_id.is_empty() => shim.pid(running, guest_pid),
        _ => guest_pid,
    };
    Ok(DeleteResponse {
        pid,
        exit_status: exit.status,
        exited_at: MessageField::some(exit.at),
        ..DeleteResponse::default()
    })
}

/// Deletes the process in the guest. One that is not there any more was deleted before.
async fn delete_in(
    shim: &Shim,
    running: &Running,
    process: &Arc<Process>,
    request: &DeleteRequest,
) -> Result<(u32, Exit), CallError> {
    let guest = running.machine.guest();
    match guest.tasks().delete(guest.context(), request).await {
        Ok(response) => Ok((
            response.pid,
            Exit::told(response.exit_status, response.exited_at),
        )),
        Err(RpcError::RpcStatus(status)) if status.code() == Code::NOT_FOUND => {
            Ok((0, process.exit().unwrap_or_else(Exit::killed)))
        }
        Err(error) => match (process.exit(), lost(shim, error)) {
            (Some(exit), CallError::Gone { .. }) => Ok((0, exit)),
            (_, error) => Err(error),
        },
    }
}

/// Takes the container's drives back and frees its id.
async fn remove(shim: &Shim, running: Option<&Running>, task: &Task) {
    if let Some(running) = running {
        // Once the table is empty the VM may end; the guest's last event must be out by then.
        let published = published(shim, running, task);
        let ((), published) = tokio::join!(detach(running, &task.id), published);
        if !published {
            tracing::warn!(task = task.id, "The guest did not tell of the deletion");
        }
    }
    task.release_files();
    shim.timeline.task(&task.id, "task_deleted");
    shim.tasks.remove(&task.id);
}

/// Waits until the event of the task's deletion is on its way to containerd; whether it is. A VM that ends sends none.
async fn published(shim: &Shim, running: &Running, task: &Task) -> bool {
    tokio::select! {
        biased;
        () = task.deletion_published.notified() => true,
        () = running.no_events() => false,
        () = shim.gone() => false,
        () = tokio::time::sleep(EVENT_BOUND) => false,
    }
}
