//! What a call can fail with. `status`: what of it goes onto the wire; `request`: what is wrong with a call itself.

use std::path::PathBuf;
use std::sync::Arc;

use fc_client::ApiError;
use fc_drives::DriveError;
use fc_errors::chain;
use fc_proto::ttrpc;
use fc_vm::machine::{BootError, Console, StopError};

use super::io::IoError;
use super::write_back::WriteBackError;

mod request;
mod status;

pub use request::{InvalidRequest, Unsupported};

/// Why a call failed. Texts in the original's words, small letters included, are those that its clients
/// look for.
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
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// An id is not one.
    #[error("Invalid id")]
    Identifier(#[from] fc_vm::ident::InvalidIdentifier),
    /// Not something this runtime, or the VM's guest, does.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A file of the bundle.
    #[error(transparent)]
    Bundle(#[from] crate::bundle::BundleError),
    /// The VM did not start.
    #[error("{}{}", if is_timeout(.0) { "" } else { "failed to create VM: " }, chain(&**.0))]
    Start(Arc<StartError>),
    /// Nobody asked for a VM yet.
    #[error("timed out waiting for VM start: nobody called CreateVM")]
    NotCreated,
    /// A second CreateVM.
    #[error("shim cannot create VM more than once")]
    CreatedAlready,
    /// The VM has ended.
    #[error("failed to find VM {vm_id:?}: {why}{console}")]
    Gone {
        /// Its id.
        vm_id: String,
        /// Why it has.
        why: &'static str,
        /// The guest's last words.
        console: Console,
    },
    /// The shim takes no more tasks.
    #[error("The VM is shutting down")]
    Stopping,
    /// A VM had to be killed.
    #[error("forcefully terminated VM {vm_id}")]
    Forced {
        /// Its id.
        vm_id: String,
        /// Why.
        source: StopError,
    },
    /// The VM was made without a balloon.
    #[error(
        "Failed to get balloon configuration. Please check if you have successfully created a balloon device"
    )]
    NoBalloon,
    /// The container's rootfs.
    #[error("Cannot prepare the rootfs of {task:?} for a VM")]
    Rootfs {
        /// The task.
        task: String,
        /// Why.
        source: fc_rootfs::RootfsError,
    },
    /// One of the container's mounts.
    #[error("Cannot prepare the mounts of {task:?} for a VM")]
    Volume {
        /// The task.
        task: String,
        /// Why.
        source: Box<fc_volume::VolumeError>,
    },
    /// A drive of the container.
    #[error("Cannot attach a drive of {task:?} to the VM")]
    Drive {
        /// The task.
        task: String,
        /// Why.
        source: Box<DriveError>,
    },
    /// What a container wrote.
    #[error("Cannot bring back what {task:?} wrote to its snapshot, which is as it was")]
    WriteBack {
        /// The task.
        task: String,
        /// Why.
        source: WriteBackError,
    },
    /// The process's stdio.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The agent's own status.
    #[error("{0}")]
    Guest(ttrpc::Error),
    /// The VMM did not do it.
    #[error("{}", chain(error))]
    Vmm {
        /// What it means when the VMM refused.
        refusal: Refusal,
        /// What happened; part of this error's text.
        error: Box<ApiError>,
    },
    /// A message could not be encoded or decoded.
    #[error("Malformed message")]
    Encoding(#[from] fc_proto::protobuf::Error),
    /// The work ended without a result.
    #[error("The shim failed while it worked on the call")]
    Panicked,
}

/// Why there is no VM after somebody asked for one.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It did not start.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The root image's builder found that it needs more.
    #[error(
        "a VM with {asked} MiB of memory cannot boot {}: the image needs at least {least} MiB",
        image.display()
    )]
    Memory {
        /// MiB asked for.
        asked: u32,
        /// MiB needed.
        least: u32,
        /// The root image.
        image: PathBuf,
    },
    /// StopVM came first, or whoever called CreateVM went away.
    #[error("the VM was stopped before it ran")]
    Stopped,
}

/// What a refusal of the VMM means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The VM is not in the state for it.
    State,
    /// What was asked for cannot be.
    Argument,
}

impl Refusal {
    /// For `map_err`.
    pub fn error(self) -> impl FnOnce(ApiError) -> CallError {
        move |error| CallError::Vmm {
            refusal: self,
            error: error.into(),
        }
    }
}

fn is_timeout(error: &StartError) -> bool {
    matches!(error, StartError::Boot(BootError::TimedOut { .. }))
}
