//! What is wrong with a call, whatever the VM does.

use fc_rootfs::WRITE_BACK_ANNOTATION;

/// The call makes no sense as it is.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRequest {
    /// It is for another VM.
    #[error("This is the shim of VM {own:?}, not of {vm_id:?}")]
    OtherVm {
        /// The shim's VM.
        own: String,
        /// The VM asked for.
        vm_id: String,
    },
    /// A number that the VMM's field cannot be.
    #[error("{field} cannot be {value}")]
    Number {
        /// The request's field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// A text that is no JSON.
    #[error("Metadata is not a JSON document")]
    Metadata(#[source] serde_json::Error),
    /// JSON that has no members.
    #[error("Metadata must be a JSON object")]
    MetadataNoObject,
    /// A stream that this version does not have, by the message's number.
    #[error("There is no stream {0}")]
    Stream(i32),
    /// The annotation asks to bring back what nothing can take.
    #[error(
        "Annotation {WRITE_BACK_ANNOTATION} needs a snapshot that is a writable overlay: a read-only one, a plain directory or a device of its own has no upper directory to write to"
    )]
    NoUpperDirectory,
}

/// Not something this runtime, or the VM's guest, does.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// The task API's Checkpoint.
    #[error("Checkpointing a container is not supported")]
    Checkpoint,
    /// Create with a checkpoint.
    #[error("Restoring a container from a checkpoint is not supported")]
    Restore,
    /// The guest's agent cannot put a rootfs together.
    #[error(
        "The agent in this root image only takes a block device as a container's rootfs: use a block snapshotter, or a root image of this version"
    )]
    BlockDevicesOnly,
    /// The guest's agent cannot send what a container wrote.
    #[error(
        "The agent in this root image cannot send what a container wrote, which annotation {WRITE_BACK_ANNOTATION} asks for: use a root image of this version"
    )]
    WriteBack,
}
