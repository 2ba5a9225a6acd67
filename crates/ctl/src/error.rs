//! What can go wrong, and the exit code for it.

use std::io;

use fc_proto::ttrpc::{Code, Error as RpcError};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The runtime's configuration.
    #[error(transparent)]
    Config(#[from] fc_config::ConfigError),
    /// The async runtime.
    #[error("Cannot set up this program")]
    Runtime(#[source] io::Error),
    /// The control service.
    #[error(transparent)]
    Connect(#[from] fc_control::client::ClientError),
    /// VMs cannot be looked for.
    #[error(transparent)]
    Look(#[from] fc_vm::list::ListError),
    /// A call was answered with an error.
    #[error("{0}")]
    Call(String, Code),
    /// A call was not answered.
    #[error("{what} gave no answer")]
    NoAnswer {
        /// Who did not answer.
        what: String,
        /// How the connection ended.
        source: RpcError,
    },
    /// There is no such VM.
    #[error(
        "VM {vm_id:?} does not exist in namespace {namespace:?}; `firecracker-ctl vm list` shows all"
    )]
    NoVm {
        /// Its namespace.
        namespace: String,
        /// Its id.
        vm_id: String,
    },
    /// The VM's shim cannot be reached.
    #[error("Cannot reach the shim of VM {vm_id:?} (process {pid})")]
    Shim {
        /// Id of the VM.
        vm_id: String,
        /// The shim's process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// A process cannot be waited for.
    #[error("Cannot wait for process {pid}")]
    Wait {
        /// Its id.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// A value of the command line is wrong.
    #[error("{what}: {problem}")]
    Value {
        /// The argument.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file named on the command line cannot be read.
    #[error("Cannot read {path}")]
    Read {
        /// The file, or `standard input`.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The cache of shared images.
    #[error(transparent)]
    Cache(#[from] fc_rootfs::CacheError),
    /// Things that could not be removed; each was printed.
    #[error("{0} of the leftovers could not be removed")]
    Leftovers(usize),
    /// The person at the terminal gave up.
    #[error("Interrupted; the VM that was being created ends with that")]
    Interrupted,
}

impl CtlError {
    /// A failed call to `what`.
    pub fn call(what: &str, error: RpcError) -> Self {
        match error {
            RpcError::RpcStatus(status) => {
                let code = status.code();
                Self::Call(status.message, code)
            }
            source => Self::NoAnswer {
                what: what.to_owned(),
                source,
            },
        }
    }

    /// The exit code, as `--help` lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Value { .. }
            | Self::Config(_)
            | Self::Look(fc_vm::list::ListError::Identifier(_)) => 2,
            Self::Call(_, code) => match code {
                Code::INVALID_ARGUMENT => 2,
                Code::NOT_FOUND => 3,
                Code::ALREADY_EXISTS => 4,
                Code::FAILED_PRECONDITION | Code::UNIMPLEMENTED => 5,
                Code::DEADLINE_EXCEEDED => 6,
                Code::UNAVAILABLE => 7,
                _ => 1,
            },
            Self::NoVm { .. } => 3,
            Self::NoAnswer { .. } | Self::Shim { .. } | Self::Connect(_) => 7,
            Self::Runtime(_)
            | Self::Look(_)
            | Self::Wait { .. }
            | Self::Read { .. }
            | Self::Cache(_)
            | Self::Leftovers(_)
            | Self::Interrupted => 1,
        }
    }
}
