//! What can be wrong with a request, by the names of its fields.

use super::MAX_VCPUS;

/// Why a request describes no VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A field of the request is not supported.
    #[error("{field} is not supported yet")]
    Unsupported {
        /// The field of CreateVMRequest.
        field: String,
    },
    /// A field must be set.
    #[error("{field}: it must be set")]
    Required {
        /// The field of CreateVMRequest.
        field: String,
    },
    /// A field's value makes no sense.
    #[error("{field}: {problem}")]
    Value {
        /// The field of CreateVMRequest.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `ro` or `rw` where the drive is the other.
    #[error(
        "{field}: mount option {} is incompatible with IsWritable={}",
        problem.option, problem.writable
    )]
    MountOption {
        /// The field of CreateVMRequest.
        field: String,
        /// Which of them.
        problem: fc_drives::OptionError,
    },
    /// The number of virtual CPUs is out of range.
    #[error("MachineCfg.VcpuCount: a VM has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u32),
    /// Too little memory to boot.
    #[error(
        "MachineCfg.MemSizeMib: a VM with {asked} MiB of memory cannot boot: the guest needs at least {least} MiB (config key min_mem_size_mib)"
    )]
    Memory {
        /// MiB asked for.
        asked: u32,
        /// MiB needed.
        least: u32,
    },
    /// A path must start with `/`.
    #[error("{field}: it must be an absolute path, not {path:?}")]
    RelativePath {
        /// The field of CreateVMRequest.
        field: String,
        /// Its value.
        path: String,
    },
}
