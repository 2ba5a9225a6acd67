//! `delete`: containerd is done with a task, or thinks that its shim is.
//!
//! It runs after every normal end, and when containerd lost the shim. In the first case there is
//! nothing left to do. In the second either the shim is dead, and what it left is undone here; or
//! it lives, and the task is ended through it: containerd forgets the task now, so nobody else would.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fc_config::Config;
use fc_proto::protobuf::well_known_types::timestamp::Timestamp;
use fc_proto::protobuf::{Message, MessageField};
use fc_proto::task::TaskClient;
use fc_proto::task::api::{
    DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest,
};
use fc_proto::ttrpc::Error as RpcError;
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::asynchronous::transport::Socket;
use fc_proto::ttrpc::context::{Context, with_duration};
use fc_vm::lock::{LockError, StartLock};
use fc_vm::machine::NAMESPACE_KEY;
use fc_vm::process::ProcessId;
use fc_vm::state::{self, State, UndoError};
use fc_vm::{address, ident};

use crate::args::Args;
use crate::bundle;
use crate::start::{self, StartError};
use crate::stopped;

/// Exit status of a task that was not seen to end: as if killed.
const KILLED: u32 = 128 + 9;
const SIGKILL: u32 = 9;
/// Bound on each call to a shim that lives. containerd has a bound on all of `delete`, 5 s if nothing else is configured.
const CALL_BOUND: Duration = Duration::from_secs(10);
/// How long a shim that does not answer any more may take to end.
const ENDING_BOUND: Duration = Duration::from_secs(10);

/// Why something could not be cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The configuration, or an invalid name.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] fc_config::ConfigError),
    /// The VM's lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The VM's shim neither answers nor ends.
    #[error(
        "The shim of VM {vm_id:?} (process {}) neither answers nor ends; kill it",
        pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
    )]
    Stuck {
        /// Id of the VM.
        vm_id: String,
        /// The shim's process, if it is known.
        pid: Option<u32>,
    },
    /// Something that a dead shim left.
    #[error("Cannot clean up after the VM's shim")]
    Undo(#[source] UndoError),
    /// The async runtime.
    #[error("Cannot talk to the VM's shim")]
    Runtime(#[source] io::Error),
    /// The answer.
    #[error("Cannot encode the answer")]
    Encoding(#[from] fc_proto::protobuf::Error),
}

/// Runs `delete`; answers the encoded `DeleteResponse`.
pub fn run(args: &Args) -> Result<Vec<u8>, DeleteError> {
    if let Some(vm_id) = vm_id(args) {
        clean_up(args, &vm_id)?;
    }
    Ok(DeleteResponse {
        exit_status: KILLED,
        exited_at: MessageField::some(Timestamp::now()),
        ..DeleteResponse::default()
    }
    .write_to_bytes()?)
}

/// The VM of the task, as `start` noted it. Without the note `start` failed and left nothing.
fn vm_id(args: &Args) -> Option<String> {
    let bundle = if args.bundle.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        args.bundle.clone()
    };
    let vm_id = std::fs::read_to_string(bundle.join(bundle::VM_ID_FILE)).ok()?;
    ident::validate(&vm_id).ok().map(|()| vm_id)
}

fn clean_up(args: &Args, vm_id: &str) -> Result<(), DeleteError> {
    let config = Config::load()?.config;
    let dir = start::vm_dir(&config, &args.namespace, vm_id)?;
    let socket = address::task_socket(&args.address, &args.namespace, vm_id);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DeleteError::Runtime)?;
    while let Some(start_lock) = StartLock::take_existing(&dir)? {
        if start_lock.try_shim_lock()?.is_some() {
            let had_vmm = State::had_vmm(&dir);
            let errors = state::undo(&dir);
            // Whoever holds the lock is the only one who finds the record.
            if had_vmm && !State::had_vmm(&dir) {
                runtime.block_on(stopped::tell(args, vm_id));
            }
            return match errors.into_iter().next() {
                Some(error) => Err(DeleteError::Undo(error)),
                None => Ok(()),
            };
        }
        let holder = start_lock.holder();
        drop(start_lock);
        if runtime.block_on(end_task(args, &socket)) {
            return Ok(());
        }
        // It holds the lock and does not answer, so it is ending: the kernel closes a killed
        // process's sockets, which is what brought us here, some time before its lock.
        let gone = match holder.and_then(ProcessId::of) {
            None => holder.is_some(),
            Some(process) => process.wait(ENDING_BOUND).unwrap_or(false),
        };
        if !gone {
            return Err(DeleteError::Stuck {
                vm_id: vm_id.to_owned(),
                pid: holder,
            });
        }
    }
    Ok(())
}

/// Ends the task in a shim that lives; says whether the shim answered. One that does not know the
/// task, or refuses, is left alone.
async fn end_task(args: &Args, socket: &Path) -> bool {
    let Ok(stream) = fc_vsock::unix::connect(socket).await else {
        return false;
    };
    let shim = TaskClient::new(Client::new(Socket::new(stream)));
    let id = args.id.clone();
    let kill = KillRequest {
        id: id.clone(),
        signal: SIGKILL,
        all: true,
        ..KillRequest::default()
    };
    match shim.kill(context(args), &kill).await {
        Ok(_) => {
            let wait = WaitRequest {
                id: id.clone(),
                ..WaitRequest::default()
            };
            let _ = shim.wait(context(args), &wait).await;
        }
        Err(RpcError::RpcStatus(_)) => {}
        Err(_) => return false,
    }
    let delete = DeleteRequest {
        id: id.clone(),
        ..DeleteRequest::default()
    };
    let _ = shim.delete(context(args), &delete).await;
    // Ends a VM of this task's own; one that other tasks may use goes on.
    let shutdown = ShutdownRequest {
        id,
        ..ShutdownRequest::default()
    };
    let _ = shim.shutdown(context(args), &shutdown).await;
    true
}

fn context(args: &Args) -> Context {
    let mut context = with_duration(CALL_BOUND);
    context.set(NAMESPACE_KEY.to_owned(), vec![args.namespace.clone()]);
    context
}
