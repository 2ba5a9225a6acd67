//! Why a VM did not start, in words that a person at `ctr` can act on.

use std::path::PathBuf;
use std::time::Duration;

use fc_client::host::kvm::Kvm;
use fc_errors::chain;

use super::guest::GuestError;
use super::last_words::{Console, LastLog};
use super::preflight::PreflightError;
use super::spec::SpecError;
use crate::state::StateError;

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The request describes no VM.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The host lacks something.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// There is no VMM to use.
    #[error(transparent)]
    Choose(#[from] fc_client::host::vmm::ChooseError),
    /// The VMM did not come up.
    #[error("The VMM did not start")]
    Launch(#[source] Box<fc_client::LaunchError>),
    /// The VMM refused a part of the VM's configuration.
    #[error("{field} cannot be had")]
    Refused {
        /// The field of CreateVMRequest, or what the configuration has in its place.
        field: String,
        /// The VMM's reason.
        source: Box<fc_client::ApiError>,
    },
    /// The VMM could not be configured or started.
    #[error(transparent)]
    Api(#[from] fc_client::ApiError),
    /// A drive mount could not be attached.
    #[error("DriveMounts[{index}] ({}) cannot be mounted", host_path.display())]
    DriveMount {
        /// Which.
        index: usize,
        /// The file or device on the host.
        host_path: PathBuf,
        /// Why.
        source: Box<fc_drives::DriveError>,
    },
    /// A drive mount could not be brought into the jail.
    #[error("DriveMounts[{index}] cannot be had in a jail")]
    DriveFile {
        /// Which.
        index: usize,
        /// Why.
        source: Box<fc_jailer::JailError>,
    },
    /// There is no jail.
    #[error("The VMM cannot be jailed")]
    Jail(#[source] Box<fc_jailer::JailError>),
    /// The jail's container did not start.
    #[error("The jail's container cannot be started")]
    Container(#[source] Box<fc_jailer::RuntimeError>),
    /// A FIFO could not be made where the request wants it.
    #[error("{field}: there can be no FIFO at {}", path.display())]
    AskedFifo {
        /// The field of CreateVMRequest.
        field: &'static str,
        /// Its value.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The VMM failed on a host whose KVM is not what it needs.
    #[error(
        "The VMM {} needs KVM, and {kvm}; firecracker-tcg does without (configuration key \
         firecracker_binary_path)",
        vmm.display()
    )]
    Kvm {
        /// The VMM.
        vmm: PathBuf,
        /// What KVM is good for here.
        kvm: Kvm,
        /// How the VMM failed.
        source: Box<BootError>,
    },
    /// The host cannot be reached by the guest.
    #[error("Cannot listen for the guest")]
    Listen(#[source] std::io::Error),
    /// A FIFO could not be drained.
    #[error(transparent)]
    Fifo(#[from] fc_client::FifoError),
    /// The stub drives could not be made.
    #[error(transparent)]
    Stubs(#[from] fc_drives::CreateError),
    /// The record of the VM's resources.
    #[error(transparent)]
    State(#[from] StateError),
    /// The agent answered, but not as it should.
    #[error("{}{console}", chain(error))]
    Guest {
        /// What is wrong with it; part of this error's text, so that the console comes last.
        error: GuestError,
        /// The guest's last words.
        console: Console,
    },
    /// The VMM ended while the guest booted.
    #[error(
        "{}The VMM ended while the guest booted: {status}{console}{}",
        console.cause(), log.unless(console)
    )]
    Ended {
        /// How the VMM's process ended.
        status: fc_client::ProcessExit,
        /// The guest's last words.
        console: Console,
        /// The VMM's last words; shown when the console tells no cause.
        log: LastLog,
    },
    /// The bound on the start passed.
    #[error(
        "VM {vm_id:?} didn't start within {bound:?}: it did not get further than to {during}{console}"
    )]
    TimedOut {
        /// Id of the VM.
        vm_id: String,
        /// The bound.
        bound: Duration,
        /// What was under way.
        during: &'static str,
        /// The guest's last words.
        console: Console,
    },
}

impl From<fc_jailer::JailError> for BootError {
    fn from(error: fc_jailer::JailError) -> Self {
        Self::Jail(Box::new(error))
    }
}

impl From<fc_jailer::StartError> for BootError {
    fn from(error: fc_jailer::StartError) -> Self {
        match error {
            fc_jailer::StartError::Vmm(error) => error.into(),
            fc_jailer::StartError::Jail(error) => error.into(),
            fc_jailer::StartError::Container(error) => Self::Container(Box::new(error)),
        }
    }
}

impl From<fc_client::LaunchError> for BootError {
    fn from(error: fc_client::LaunchError) -> Self {
        Self::Launch(Box::new(error))
    }
}

/// What an error is, for whoever has to answer with a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The request cannot be meant.
    Invalid,
    /// The request asks for what this version does not do.
    Unsupported,
    /// The host, or the state of something, does not allow it now.
    Precondition,
    /// A bound passed.
    Deadline,
    /// A connection to the guest was lost or refused.
    Unavailable,
    /// Everything else.
    Internal,
}

impl BootError {
    /// What the error is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Spec(SpecError::Unsupported { .. }) => Class::Unsupported,
            Self::Spec(_) | Self::Refused { .. } | Self::AskedFifo { .. } => Class::Invalid,
            Self::Preflight(error) if error.is_refusal() => Class::Invalid,
            Self::Preflight(PreflightError::Stopped(_)) => Class::Internal,
            Self::Preflight(_) | Self::Choose(_) | Self::DriveMount { .. } => Class::Precondition,
            Self::TimedOut { .. } => Class::Deadline,
            Self::Kvm { source, .. } => source.class(),
            Self::Guest { error, .. } => match error {
                GuestError::Connect(_) | GuestError::Call { .. } | GuestError::Lost(_) => {
                    Class::Unavailable
                }
                GuestError::Protocol { .. } => Class::Precondition,
                _ => Class::Internal,
            },
            Self::Jail(error) | Self::DriveFile { source: error, .. } => {
                if error.is_invalid_request() {
                    Class::Invalid
                } else {
                    Class::Precondition
                }
            }
            Self::Launch(_)
            | Self::Container(_)
            | Self::Api(_)
            | Self::Listen(_)
            | Self::Fifo(_)
            | Self::Stubs(_)
            | Self::State(_)
            | Self::Ended { .. } => Class::Internal,
        }
    }

    /// Whether the VMM, or the guest in it, may be behind the error.
    pub(super) fn may_be_of_the_vmm(&self) -> bool {
        matches!(
            self,
            Self::Launch(_)
                | Self::Api(_)
                | Self::Guest { .. }
                | Self::Ended { .. }
                | Self::TimedOut { .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn an_ended_guest_is_explained() {
        let lines = ["[ 0.1] booting", "", "firecracker-initrd: No root= given"];
        let error = BootError::Ended {
            status: fc_client::ProcessExit::Status(std::process::ExitStatus::from_raw(0)),
            console: Console::new(lines.map(str::to_owned).to_vec()),
            log: LastLog::new(vec!["VMM: shut down".to_owned()]),
        };
        assert_eq!(
            error.to_string(),
            "The initrd gave up: No root= given. The VMM ended while the guest booted: exit status: 0; \
             the guest's last console lines:\n  [ 0.1] booting\n  firecracker-initrd: No root= given"
        );
    }

    #[test]
    fn what_only_the_vmm_knows_is_in_its_log() {
        let log = [
            "",
            "2026-11-21T19:42:34.413091955 [vm:fc_vcpu 0] Failed to run the vCPU: bad exit",
        ];
        let error = BootError::Ended {
            status: fc_client::ProcessExit::Unknown,
            console: Console::new(vec!["[ 0.1] booting".to_owned()]),
            log: LastLog::new(log.map(str::to_owned).to_vec()),
        };
        let text = error.to_string();
        let (_, log) = text.split_once("; the VMM's last log lines:\n").unwrap();
        assert!(
            log.contains("Failed to run the vCPU") && !text.contains("\n\n"),
            "{text}"
        );
    }

    #[test]
    fn a_timeout_says_what_clients_look_for() {
        let error = BootError::TimedOut {
            vm_id: "a".into(),
            bound: Duration::from_secs(60),
            during: "boot the guest",
            console: Console::default(),
        };
        assert_eq!(error.class(), Class::Deadline);
        assert!(
            error
                .to_string()
                .starts_with("VM \"a\" didn't start within 60s: ")
        );
    }
}
