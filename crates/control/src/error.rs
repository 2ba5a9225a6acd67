//! What a call can fail with, and the one place that turns it into a status on the wire.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use fc_errors::chain;
use fc_proto::ttrpc::{self, Code, get_status};
use fc_vm::ident::InvalidIdentifier;
use fc_vm::launch::LaunchError;
use fc_vm::list::{CleanUpError, ListError};

/// Why a call failed. See [`ControlError::code`] for what clients can tell apart.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A VM id or a namespace is no identifier.
    #[error("Invalid {what}")]
    Identifier {
        /// `id` or `namespace`.
        what: &'static str,
        /// Why.
        source: InvalidIdentifier,
    },
    /// The request does not say which namespace it is for. (The words are the original's.)
    #[error(
        "error retrieving namespace of request: the metadata has no {:?}",
        fc_proto::NAMESPACE_KEY
    )]
    NoNamespace,
    /// The request is for the VMs of another containerd.
    #[error("This is the control service of the containerd at {served:?}, not of {asked:?}")]
    OtherContainerd {
        /// Address in the request.
        asked: String,
        /// Address of ours.
        served: String,
    },
    /// The VM has a shim already.
    #[error("VM with ID {vm_id:?} already exists (socket: {})", socket.display())]
    Exists {
        /// Its id.
        vm_id: String,
        /// The shim's task socket.
        socket: PathBuf,
    },
    /// The VM has no shim.
    #[error("VM {vm_id:?} does not exist in namespace {namespace:?}")]
    NotFound {
        /// The namespace that was looked in.
        namespace: String,
        /// Its id.
        vm_id: String,
    },
    /// The VM's shim runs but does not answer.
    #[error(
        "The shim of VM {vm_id:?} (process {pid}) does not answer; if it stays so, StopVM ends it and its VM"
    )]
    NoAnswer {
        /// Id of the VM.
        vm_id: String,
        /// The shim's process.
        pid: u32,
    },
    /// The connection broke in the middle of the call.
    #[error("The shim of VM {vm_id:?} ended before it answered")]
    Lost {
        /// Id of the VM.
        vm_id: String,
        /// How the connection broke.
        source: ttrpc::Error,
    },
    /// The VM's shim ended before the VM ran, and not because of the VM.
    #[error(
        "The shim of VM {vm_id:?} ended before the VM ran; the last line of its log: {words:?}"
    )]
    Died {
        /// Id of the VM.
        vm_id: String,
        /// The last line of its log; empty if there was none.
        words: String,
    },
    /// What the VM's shim answered.
    #[error("{}", .0.message)]
    Shim(ttrpc::Status),
    /// The caller of CreateVM did not wait.
    #[error("CreateVM of VM {vm_id:?} was given up by its caller; the VM was ended")]
    GivenUp {
        /// Id of the VM.
        vm_id: String,
    },
    /// CreateVM took longer than its caller allows, and the shim did not notice.
    #[error(
        "VM {vm_id:?} didn't start within {bound:?}: its shim did not say why; the VM was ended"
    )]
    TimedOut {
        /// Id of the VM.
        vm_id: String,
        /// The caller's bound.
        bound: Duration,
    },
    /// The VM's shim did not end it, so both were killed. (The first words are the original's.)
    #[error(
        "forcefully terminated VM {vm_id}: its shim (process {pid}) did not end it in time and was killed too"
    )]
    Forced {
        /// Id of the VM.
        vm_id: String,
        /// The shim's process.
        pid: u32,
    },
    /// Two things went wrong while a VM was ended.
    #[error("{first}; moreover: {second}")]
    Both {
        /// What the shim said. Its code is the call's.
        first: Box<ControlError>,
        /// What went wrong after that.
        second: Box<ControlError>,
    },
    /// The VM's shim could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It cannot be found out which VMs there are.
    #[error(transparent)]
    Look(#[from] ListError),
    /// What a dead shim left is still there.
    #[error(transparent)]
    CleanUp(#[from] CleanUpError),
    /// The shim's process cannot be watched or signalled.
    #[error("Cannot {action} the shim of VM {vm_id:?} (process {pid})")]
    Process {
        /// `watch` or `end`.
        action: &'static str,
        /// Id of the VM.
        vm_id: String,
        /// The shim's process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// The work ended without a result.
    #[error("The control service failed while it worked on the call")]
    Panicked,
}

impl ControlError {
    /// The call's status on the wire.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Identifier { .. } | Self::NoNamespace => Code::INVALID_ARGUMENT,
            Self::OtherContainerd { .. } => Code::FAILED_PRECONDITION,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::NotFound { .. } => Code::NOT_FOUND,
            Self::NoAnswer { .. } | Self::Lost { .. } => Code::UNAVAILABLE,
            Self::Shim(status) => status.code(),
            Self::GivenUp { .. } => Code::CANCELLED,
            Self::TimedOut { .. } => Code::DEADLINE_EXCEEDED,
            Self::Both { first, .. } => first.code(),
            Self::Launch(LaunchError::Identifier(_)) | Self::Look(ListError::Identifier(_)) => {
                Code::INVALID_ARGUMENT
            }
            Self::Launch(LaunchError::Stuck { .. }) => Code::UNAVAILABLE,
            Self::Launch(_)
            | Self::Look(_)
            | Self::CleanUp(_)
            | Self::Died { .. }
            | Self::Forced { .. }
            | Self::Process { .. }
            | Self::Panicked => Code::INTERNAL,
        }
    }

    /// The status with all causes in its message.
    #[must_use]
    pub fn into_rpc(self) -> ttrpc::Error {
        match self {
            Self::Shim(status) => ttrpc::Error::RpcStatus(status),
            other => ttrpc::Error::RpcStatus(get_status(other.code(), chain(&other))),
        }
    }
}
