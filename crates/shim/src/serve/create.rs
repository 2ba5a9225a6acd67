//! Create: from containerd's rootfs and FIFOs to a container in the guest.

use std::path::PathBuf;
use std::sync::Arc;

use fc_proto::guest::{EXTRA_DATA_TYPE_URL, ExtraData, WaitProcessRequest, feature};
use fc_proto::protobuf::well_known_types::any::Any;
use fc_proto::protobuf::{Message, MessageField};
use fc_proto::task::api::{CreateTaskRequest, WaitRequest};
use fc_proto::ttrpc::Error as RpcError;
use fc_vm::ident;
use fc_vm::machine::Guest;

use super::drives::{attach, detach, guest_path};
use super::error::{CallError, Unsupported};
use super::files::{self, Files};
use super::io::{self, Stdio, Written};
use super::link;
use super::process::{Exit, Process};
use super::shim::{Running, Shim};
use super::stop;
use super::tasks::Task;
use super::write_back::WriteBack;
use crate::bundle::Spec;

/// Creates a container; answers the process id to show. Fails without a trace: the same id can
/// be created again.
///
/// # Errors
/// What went wrong first; the VM's own failure before anything else.
pub async fn create(shim: &Arc<Shim>, request: CreateTaskRequest) -> Result<u32, CallError> {
    ident::validate(&request.id)?;
    if !request.checkpoint.is_empty() {
        return Err(Unsupported::Restore.into());
    }
    let reservation = shim.tasks.reserve(&request.id)?;
    let spec = Spec::read(&PathBuf::from(&request.bundle))?;
    // The files are made while the VM boots.
    let (running, files) = tokio::join!(shim.vm(), files::prepare(shim, &request, &spec));
    let running = running?;
    let ready = files.and_then(|files| {
        let write_back = WriteBack::of(shim, &running, &request, &spec)?;
        Ok((files, write_back))
    });
    let (files, write_back) = ready.inspect_err(|_| stop::expect_shutdown(shim, &running))?;
    shim.timeline.task(&request.id, "rootfs_prepared");

    let running = shim.reachable().await?;
    let before = link::now(running.machine.guest());
    let created = create_in(shim, &running, &request, &files).await;
    let (process, guest_pid) = match created {
        Ok(created) => created,
        Err(error) => {
            if let CallError::Guest(lost) = &error {
                link::forget(&running, &request.id, before, lost).await;
            }
            detach(&running, &request.id).await;
            stop::expect_shutdown(shim, &running);
            return Err(error);
        }
    };
    let task = Task::new(
        PathBuf::from(&request.bundle),
        request.rootfs,
        Arc::clone(&process),
        files,
        write_back,
    );
    shim.timeline.task(&request.id, "task_created");
    reservation.fill(Arc::new(task));
    watch_exit(shim, &running, process);
    Ok(shim.pid(&running, guest_pid))
}

/// Attaches the drives and creates the container in the guest. Its drives are the caller's to
/// detach when this fails.
async fn create_in(
    shim: &Arc<Shim>,
    running: &Running,
    request: &CreateTaskRequest,
    files: &Files,
) -> Result<(Arc<Process>, u32), CallError> {
    let mounts = attach(running, &request.id, files).await?;
    let rootfs = mounts.unwrap_or_else(|| request.rootfs.clone());
    shim.timeline.task(&request.id, "rootfs_attached");

    let stdio = Stdio {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let streams = io::Prepared::new(&stdio, &running.ports)?;
    let extra = ExtraData {
        JsonSpec: files.volumes.spec().to_vec(),
        RuncOptions: request.options.clone(),
        ..extra_data(running, &streams)
    };
    let mut guest_request = CreateTaskRequest {
        id: request.id.clone(),
        bundle: guest_path(&request.id, ""),
        rootfs,
        terminal: request.terminal,
        options: MessageField::some(extra_any(&extra)?),
        ..CreateTaskRequest::default()
    };
    [
        guest_request.stdin,
        guest_request.stdout,
        guest_request.stderr,
    ] = wanted(&streams);
    let process_io = streams.start({
        let shim = Arc::clone(shim);
        let id = request.id.clone();
        move || shim.timeline.task(&id, "first_output")
    });
    let guest = running.machine.guest();
    let created = guest.tasks().create(guest.context(), &guest_request).await;
    let created = created.map_err(|error| lost(shim, error))?;
    let process = Process::new(&request.id, "", stdio, process_io);
    Ok((Arc::new(process), created.pid))
}

/// What the agent must know of a process's streams.
pub fn extra_data(running: &Running, streams: &io::Prepared) -> ExtraData {
    let [stdin, stdout, stderr] = streams.ports;
    ExtraData {
        StdinPort: stdin,
        StdoutPort: stdout,
        StderrPort: stderr,
        HostListens: running.ports.host_listens(),
        ..ExtraData::default()
    }
}

/// Wraps [`ExtraData`] as the original does.
pub fn extra_any(extra: &ExtraData) -> Result<Any, CallError> {
    Ok(Any {
        type_url: EXTRA_DATA_TYPE_URL.to_owned(),
        value: extra.write_to_bytes()?,
        ..Any::default()
    })
}

/// Names of the streams for the guest, where a name means "wanted". The host's paths stay here.
pub fn wanted(streams: &io::Prepared) -> [String; 3] {
    let names = ["stdin", "stdout", "stderr"];
    std::array::from_fn(|i| match streams.ports[i] {
        0 => String::new(),
        _ => names[i].to_owned(),
    })
}

/// A failed call to the guest. When the VM is gone, that is the better explanation.
pub fn lost(shim: &Shim, error: RpcError) -> CallError {
    match (&error, shim.running()) {
        (RpcError::RpcStatus(_), _) | (_, Ok(_)) => CallError::Guest(error),
        (_, Err(gone)) => gone,
    }
}

/// Follows the process until it ends.
pub fn watch_exit(shim: &Arc<Shim>, running: &Arc<Running>, process: Arc<Process>) {
    let shim = Arc::clone(shim);
    let running = Arc::clone(running);
    tokio::spawn(async move {
        let guest = running.machine.guest();
        let answer = loop {
            let before = link::now(guest);
            match wait(guest, &process).await {
                Err(error) if !matches!(error, RpcError::RpcStatus(_)) => {
                    if !link::regained(guest, before).await {
                        break Err(error);
                    }
                }
                answer => break answer,
            }
        };
        match answer {
            Ok((exit, written)) => {
                if process.exec_id.is_empty() {
                    shim.timeline.task(&process.task_id, "task_exited");
                }
                process.ended(exit, written).await;
            }
            // Deleted before it ran; or the VM ended, which is told elsewhere.
            Err(error) => tracing::debug!(
                task = process.task_id,
                exec = process.exec_id,
                "The guest does not tell of the process's end: {error}"
            ),
        }
    });
}

/// Waits for the process's end in the guest: how it ended and, if the agent can tell, what it had written by then.
async fn wait(guest: &Guest, process: &Process) -> Result<(Exit, Option<Written>), RpcError> {
    if guest.has(feature::WAIT_PROCESS) {
        let request = WaitProcessRequest {
            container_id: process.task_id.clone(),
            exec_id: process.exec_id.clone(),
            ..WaitProcessRequest::default()
        };
        let agent = guest.agent();
        let response = agent.wait_process(guest.context(), &request).await?;
        let exit = Exit::told(response.exit_status, response.exited_at);
        return Ok((exit, Some([response.stdout_bytes, response.stderr_bytes])));
    }
    let request = WaitRequest {
        id: process.task_id.clone(),
        exec_id: process.exec_id.clone(),
        ..WaitRequest::default()
    };
    let response = guest.tasks().wait(guest.context(), &request).await?;
    let exit = Exit::told(response.exit_status, response.exited_at);
    Ok((exit, None))
}
