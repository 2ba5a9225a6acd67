//! The connection to the agent: what to do when it breaks under a call.

use fc_proto::task::api::{DeleteRequest, KillRequest, StateRequest, Status, WaitRequest};
use fc_proto::ttrpc::Error as RpcError;
use fc_vm::machine::{Connection, Guest};

use super::shim::{Running, Shim};

/// The signal that nothing survives.
const SIGKILL: u32 = 9;

/// How the connection is, to be compared after a call.
pub fn now(guest: &Guest) -> Connection {
    *guest.connection().borrow()
}

/// A call broke that began when the connection was `before`: waits for the next connection. Answers
/// whether there is one.
pub async fn regained(guest: &Guest, before: Connection) -> bool {
    let mut connection = guest.connection();
    if *connection.borrow() == before && matches!(before, Connection::Up(_)) {
        // The call knows best.
        guest.break_connection();
    }
    let settled = |c: &Connection| *c != before && *c != Connection::Lost;
    let next = connection.wait_for(settled).await;
    next.is_ok_and(|connection| *connection != Connection::Gone)
}

/// Learns from the guest what its processes do: calls may have done something whose answer was lost. How
/// they end is asked elsewhere.
pub async fn look_again(shim: &Shim, running: &Running) {
    let guest = running.machine.guest();
    for process in shim.tasks.all().iter().flat_map(|task| task.processes()) {
        let request = StateRequest {
            id: process.task_id.clone(),
            exec_id: process.exec_id.clone(),
            ..StateRequest::default()
        };
        let Ok(state) = guest.tasks().state(guest.context(), &request).await else {
            continue;
        };
        if let Ok(status @ (Status::CREATED | Status::RUNNING | Status::PAUSED)) =
            state.status.enum_value()
        {
            process.set_status(status);
        }
    }
}

/// Removes a container that the guest may have created although its answer was lost with a connection that
/// was `before`.
pub async fn forget(running: &Running, id: &str, before: Connection, error: &RpcError) {
    let guest = running.machine.guest();
    if matches!(error, RpcError::RpcStatus(_)) || !regained(guest, before).await {
        return;
    }
    let kill = KillRequest {
        id: id.to_owned(),
        signal: SIGKILL,
        all: true,
        ..KillRequest::default()
    };
    let wait = WaitRequest {
        id: id.to_owned(),
        ..WaitRequest::default()
    };
    let delete = DeleteRequest {
        id: id.to_owned(),
        ..DeleteRequest::default()
    };
    let tasks = guest.tasks();
    // Each of them fails where there is nothing to remove.
    if tasks.kill(guest.context(), &kill).await.is_ok()
        && tasks.wait(guest.context(), &wait).await.is_ok()
    {
        tracing::info!(
            task = id,
            "Removing a container whose creation was not answered"
        );
    }
    let _ = tasks.delete(guest.context(), &delete).await;
}
