//! What the launcher passes to the shim of a VM: descriptors, environment, the request on stdin.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, RawFd};
use std::os::unix::net::UnixListener;

use fc_config::Config;
use fc_proto::control::CreateVMRequest;
use fc_proto::protobuf::Message;
use fc_vm::dir::VmDir;
use fc_vm::launch::{CONTROL_FD_ENV, LOCK_FD_ENV, TASK_FD, VM_ID_ENV};
use fc_vm::lock::ShimLock;
use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::args::Args;
use crate::start;

/// Largest request taken from stdin, in bytes.
const MAX_REQUEST: u64 = 4 << 20;

/// What a shim starts with.
pub struct Inherited {
    /// The VM's directory, which is the working directory.
    pub dir_name: VmDir,
    /// Listener of the task API.
    pub task_socket: UnixListener,
    /// Listener of the control API.
    pub control_socket: UnixListener,
    /// The lock that makes the VM unique; kept until the process ends.
    pub lock: ShimLock,
    /// The VM to create at once.
    pub request: Option<CreateVMRequest>,
    /// Path of containerd's ttrpc socket.
    pub ttrpc_address: String,
}

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// Started by hand.
    #[error(
        "Without an action this program is the shim of a VM and is started by its own `start` (environment variable {0} is missing)"
    )]
    NotLaunched(&'static str),
    /// A descriptor is not what it should be.
    #[error("File descriptor {fd} is not the {what}")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// What it should be.
        what: &'static str,
        /// Why it is not, if the kernel said so.
        source: Option<io::Error>,
    },
    /// stdin holds something else than a CreateVMRequest.
    #[error("Standard input is not a CreateVMRequest")]
    Request(#[source] io::Error),
    /// The namespace or the VM id is no identifier, or the configuration does not load.
    #[error(transparent)]
    Start(#[from] start::StartError),
}

impl Inherited {
    /// Takes over what the launcher passed. Only once per process.
    pub fn take(args: &Args) -> Result<Self, InheritedError> {
        let vm_id = env(VM_ID_ENV)?;
        let control_fd = env_fd(CONTROL_FD_ENV)?;
        let lock_fd = env_fd(LOCK_FD_ENV)?;
        // Only the base directory is needed here, and a configuration that does not load is
        // reported once there is a log.
        let config = Config::load().map(|l| l.config).unwrap_or_default();
        Ok(Self {
            dir_name: start::vm_dir(&config, &args.namespace, &vm_id)?,
            task_socket: adopt(TASK_FD, "task socket", FileType::Socket)?.into(),
            control_socket: adopt(control_fd, "control socket", FileType::Socket)?.into(),
            lock: ShimLock::inherited(adopt(lock_fd, "lock", FileType::RegularFile)?.into()),
            request: request()?,
            ttrpc_address: start::ttrpc_address(args),
        })
    }
}

fn env(name: &'static str) -> Result<String, InheritedError> {
    std::env::var(name).map_err(|_| InheritedError::NotLaunched(name))
}

fn env_fd(name: &'static str) -> Result<RawFd, InheritedError> {
    env(name)?
        .parse()
        .ok()
        .filter(|fd| *fd > TASK_FD)
        .ok_or(InheritedError::NotLaunched(name))
}

/// Takes a descriptor of the launcher, after a look at it, and keeps it from the shim's children.
fn adopt(
    fd: RawFd,
    what: &'static str,
    kind: FileType,
) -> Result<std::os::fd::OwnedFd, InheritedError> {
    let error = |source| InheritedError::Descriptor { fd, what, source };
    // SAFETY: the number is the launcher's gift to this process and adopted here once; should
    // nothing be open there, the first use says so.
    let file = unsafe { File::from_raw_fd(fd) };
    let stat = match fstat(file.as_fd()) {
        Ok(stat) => stat,
        Err(errno) => {
            // Not ours to close: it is not open.
            std::mem::forget(file);
            return Err(error(Some(errno.into())));
        }
    };
    if FileType::from_raw_mode(stat.st_mode) != kind {
        return Err(error(None));
    }
    fcntl_setfd(&file, FdFlags::CLOEXEC).map_err(|e| error(Some(e.into())))?;
    Ok(file.into())
}

fn request() -> Result<Option<CreateVMRequest>, InheritedError> {
    let mut bytes = Vec::new();
    io::stdin()
        .take(MAX_REQUEST)
        .read_to_end(&mut bytes)
        .map_err(InheritedError::Request)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    CreateVMRequest::parse_from_bytes(&bytes)
        .map(Some)
        .map_err(|e| InheritedError::Request(e.into()))
}
