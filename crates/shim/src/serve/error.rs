//! What a call can fail with, and the one place that turns it into a status on the wire.

use std::sync::Arc;

use fc_proto::ttrpc::{self, Code, get_status};
use fc_vm::machine::{BootError, Console, SpecError, StopError, chain};

use super::io::IoError;

/// Longest message of the guest that is passed on, in bytes.
const MAX_GUEST_MESSAGE: usize = 16 << 10;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No such task.
    #[error("Task {0:?} does not exist in this VM")]
    NoTask(String),
    /// No such exec.
    #[error("Exec {exec:?} of task {task:?} does not exist")]
    NoExec {
        /// The task.
        task: String,
        /// The exec.
        exec: String,
    },
    /// The id is taken.
    #[error("{what} {id:?} already exists")]
    Exists {
        /// `Task` or `Exec`.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The call makes no sense as it is.
    #[error("{0}")]
    Invalid(String),
    /// An id is not one.
    #[error("Invalid id")]
    Identifier(#[from] fc_vm::ident::InvalidIdentifier),
    /// Not something this runtime does.
    #[error("{0}")]
    Unsupported(String),
    /// A file of the bundle.
    #[error(transparent)]
    Bundle(#[from] crate::bundle::BundleError),
    /// The VM did not start.
    #[error("Failed to create VM: {}", chain(&**.0))]
    Boot(Arc<BootError>),
    /// Nobody asked for a VM yet.
    #[error("Timed out waiting for VM start: nobody called CreateVM")]
    NotCreated,
    /// A second CreateVM.
    #[error("Shim cannot create VM more than once")]
    CreatedAlready,
    /// The VM has ended.
    #[error("Failed to find VM {vm_id:?}: its VMM is gone{console}")]
    Gone {
        /// Its id.
        vm_id: String,
        /// The guest's last words.
        console: Console,
    },
    /// The shim takes no more tasks.
    #[error("The VM is shutting down")]
    Stopping,
    /// A VM had to be killed.
    #[error("Forcefully terminated VM {vm_id}")]
    Forced {
        /// Its id.
        vm_id: String,
        /// Why.
        source: StopError,
    },
    /// The container's rootfs.
    #[error("Cannot prepare the rootfs of {task:?} for a VM")]
    Rootfs {
        /// The task.
        task: String,
        /// Why.
        source: fc_rootfs::RootfsError,
    },
    /// A drive of the container.
    #[error("Cannot attach the rootfs of {task:?} to the VM")]
    Drive {
        /// The task.
        task: String,
        /// Why.
        source: fc_drives::DriveError,
    },
    /// The process's stdio.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The agent's own status.
    #[error("{0}")]
    Guest(ttrpc::Error),
    /// The VMM's refusal.
    #[error(transparent)]
    Vmm(#[from] fc_client::ApiError),
    /// A message could not be encoded or decoded.
    #[error("Malformed message")]
    Encoding(#[from] fc_proto::protobuf::Error),
    /// The work ended without a result.
    #[error("The shim failed while it worked on the call")]
    Panicked,
}

impl CallError {
    /// The status on the wire.
    pub fn into_rpc(self) -> ttrpc::Error {
        let code = match &self {
            Self::Guest(ttrpc::Error::RpcStatus(status)) => {
                return ttrpc::Error::RpcStatus(get_status(
                    status.code(),
                    guest_text(&status.message),
                ));
            }
            Self::NoTask(_) | Self::NoExec { .. } | Self::Gone { .. } => Code::NOT_FOUND,
            Self::Exists { .. } | Self::CreatedAlready => Code::ALREADY_EXISTS,
            Self::Invalid(_) | Self::Identifier(_) => Code::INVALID_ARGUMENT,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Boot(error) => boot_code(error),
            Self::NotCreated => Code::DEADLINE_EXCEEDED,
            Self::Stopping => Code::FAILED_PRECONDITION,
            Self::Io(error) if error.is_unsupported() => Code::UNIMPLEMENTED,
            Self::Guest(_) => Code::UNAVAILABLE,
            Self::Forced { .. } | Self::Panicked => Code::INTERNAL,
            Self::Bundle(_)
            | Self::Rootfs { .. }
            | Self::Drive { .. }
            | Self::Io(_)
            | Self::Vmm(_)
            | Self::Encoding(_) => Code::UNKNOWN,
        };
        ttrpc::Error::RpcStatus(get_status(code, chain(&self)))
    }
}

fn boot_code(error: &BootError) -> Code {
    match error {
        BootError::TimedOut { .. } => Code::DEADLINE_EXCEEDED,
        BootError::Spec(SpecError::Unsupported { .. }) => Code::UNIMPLEMENTED,
        BootError::Spec(_) => Code::INVALID_ARGUMENT,
        BootError::Kvm { source, .. } => boot_code(source),
        BootError::Preflight(_) | BootError::Choose(_) => Code::FAILED_PRECONDITION,
        _ => Code::UNKNOWN,
    }
}

/// Text that a guest wrote: bounded, and nothing in it that a terminal would obey.
fn guest_text(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .take(MAX_GUEST_MESSAGE)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: CallError) -> (Code, String) {
        match error.into_rpc() {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn codes() {
        assert_eq!(
            status(CallError::NoTask("a".into())),
            (
                Code::NOT_FOUND,
                "Task \"a\" does not exist in this VM".to_owned()
            )
        );
        let guest = ttrpc::Error::RpcStatus(get_status(Code::FAILED_PRECONDITION, "no\u{1b}[2J"));
        assert_eq!(
            status(CallError::Guest(guest)),
            (Code::FAILED_PRECONDITION, "no[2J".to_owned())
        );
        assert_eq!(
            status(CallError::Guest(ttrpc::Error::RemoteClosed)).0,
            Code::UNAVAILABLE
        );
        let boot = BootError::Spec(SpecError::Vcpus(0));
        assert_eq!(
            status(CallError::Boot(Arc::new(boot))).0,
            Code::INVALID_ARGUMENT
        );
    }
}
