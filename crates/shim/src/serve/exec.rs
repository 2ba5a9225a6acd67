//! Exec: another process in a container.

use std::sync::Arc;

use fc_proto::guest::ExtraData;
use fc_proto::protobuf::MessageField;
use fc_proto::task::api::ExecProcessRequest;
use fc_vm::ident;

use super::create::{extra_any, extra_data, lost, wanted, watch_exit};
use super::error::CallError;
use super::io::{self, Stdio};
use super::process::Process;
use super::shim::Shim;

/// Creates a process in a container; Start runs it.
///
/// # Errors
/// What went wrong; the exec's id is free again then.
pub async fn exec(shim: &Arc<Shim>, request: ExecProcessRequest) -> Result<(), CallError> {
    ident::validate(&request.exec_id)?;
    let running = shim.reachable().await?;
    let task = shim.tasks.get(&request.id)?;
    let reservation = task.reserve_exec(&request.exec_id)?;
    let stdio = Stdio {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    let streams = io::Prepared::new(&stdio, &running.ports)?;
    let extra = ExtraData {
        RuncOptions: request.spec,
        ..extra_data(&running, &streams)
    };
    let [stdin, stdout, stderr] = wanted(&streams);
    let guest_request = ExecProcessRequest {
        id: request.id,
        exec_id: request.exec_id,
        terminal: stdio.terminal,
        stdin,
        stdout,
        stderr,
        spec: MessageField::some(extra_any(&extra)?),
        ..ExecProcessRequest::default()
    };
    let process_io = streams.start(|| {});
    let guest = running.machine.guest();
    let created = guest.tasks().exec(guest.context(), &guest_request).await;
    created.map_err(|error| lost(shim, error))?;
    let process = Process::new(&guest_request.id, &guest_request.exec_id, stdio, process_io);
    let process = Arc::new(process);
    reservation.fill(Arc::clone(&process));
    watch_exit(shim, &running, process);
    Ok(())
}
