//! What task requests can fail with, and which status code that is.

use std::io;
use std::path::PathBuf;

use ttrpc::Code;

use crate::mount::MountError;
use crate::oci::RuntimeError;
use crate::oci::spec::SpecError;
use crate::oci::user::UserError;
use crate::rpc::status;
use crate::stdio::ConnectError;

/// Why a task request failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Not an id that containerd would give.
    #[error(
        "Invalid id {0:?}: it must be 1 to 76 letters, digits and single separators (. _ -) between them"
    )]
    Id(String),
    /// No such container.
    #[error("Task {0:?} does not exist")]
    NoTask(String),
    /// No such further process.
    #[error("Process {exec:?} of task {task:?} does not exist")]
    NoProcess {
        /// The container.
        task: String,
        /// The process.
        exec: String,
    },
    /// The id is in use.
    #[error("Task {0:?} already exists")]
    TaskExists(String),
    /// The id is in use.
    #[error("Exec {0:?} already exists")]
    ProcessExists(String),
    /// The process has ended.
    #[error("Process has already finished")]
    Finished,
    /// The request does not fit the process's state.
    #[error("Cannot {action} a process that is {state}")]
    State {
        /// What was asked for.
        action: &'static str,
        /// What it is.
        state: &'static str,
    },
    /// The kernel refused the signal.
    #[error("Cannot send signal {signal}")]
    Signal {
        /// Its number.
        signal: u32,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// Create or Exec without what the shim adds.
    #[error("Request carries {0:?} where the shim's ExtraData is expected")]
    NotExtraData(String),
    /// A message inside the request is damaged.
    #[error("Cannot decode {what} in the request")]
    Decode {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: protobuf::Error,
    },
    /// The bundle must be where everybody expects it.
    #[error("Bundle must be {expected}, not {given:?}")]
    Bundle {
        /// Where.
        expected: PathBuf,
        /// Asked for.
        given: String,
    },
    /// There is no root file system.
    #[error("Container has no rootfs: nothing is mounted at {0} and the request names no mounts")]
    NoRootfs(PathBuf),
    /// Something that this agent does not do.
    #[error("{0}")]
    Unsupported(&'static str),
    /// There are no such figures.
    #[error("The container's cgroup has no statistics")]
    NoStats,
    /// A file of the bundle.
    #[error("Cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The terminal.
    #[error("Cannot resize the terminal")]
    Resize(#[source] io::Error),
    /// The spec does not fit the guest.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The spec's user.
    #[error(transparent)]
    User(#[from] UserError),
    /// A stream.
    #[error(transparent)]
    Stream(#[from] ConnectError),
    /// A mount of the rootfs.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The OCI runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Delete failed half way; it can be repeated.
    #[error("Container is deleted only in part: {0}")]
    Cleanup(String),
    /// Cleaning up after a failure failed too.
    #[error("{cause}; while cleaning up: {failures}")]
    Undo {
        /// What was going on.
        cause: String,
        /// The code of that.
        code: Code,
        /// All that failed.
        failures: String,
    },
}

impl TaskError {
    /// The status code for the caller.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Id(_)
            | Self::NotExtraData(_)
            | Self::Decode { .. }
            | Self::Bundle { .. }
            | Self::Signal { .. }
            | Self::Spec(_)
            | Self::User(_) => Code::INVALID_ARGUMENT,
            Self::NoTask(_) | Self::NoProcess { .. } | Self::Finished => Code::NOT_FOUND,
            Self::TaskExists(_) | Self::ProcessExists(_) => Code::ALREADY_EXISTS,
            Self::State { .. } | Self::NoRootfs(_) | Self::NoStats => Code::FAILED_PRECONDITION,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Stream(_) => Code::UNAVAILABLE,
            Self::Undo { code, .. } => *code,
            Self::Cleanup(_)
            | Self::File { .. }
            | Self::Resize(_)
            | Self::Mount(_)
            | Self::Runtime(_) => Code::UNKNOWN,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        status(error.code(), &error)
    }
}
