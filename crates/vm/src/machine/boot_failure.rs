//! Why a boot failed: whoever fails first often knows least.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fc_client::host::kvm::{self, Kvm};
use fc_client::{Vmm, VmmEnd};
use fc_jailer::DriveFile;

use super::error::BootError;
use super::guest::GuestError;
use super::last_words::{Console, LastLog};

/// File name of the VMM that needs no KVM.
const EMULATOR: &str = "firecracker-tcg";
/// How long the VMM may take to end after its guest's agent said that it cannot serve.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long the VMM may take to end after the connection to its guest's agent failed: its end is the better explanation.
const VMM_END: Duration = Duration::from_secs(10);
/// How long a copy may take to fail after something else did for want of room: it does at its next write, but a busy
/// host may not run it at once.
const COPY_FAILURE: Duration = Duration::from_secs(5);

/// What a step of the boot failed with.
pub(super) enum Failure {
    Boot(BootError),
    Guest(GuestError),
}

impl<E: Into<BootError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Boot(error.into())
    }
}

/// Why the VMM did not start: a copy that fills the disk lets the OCI runtime, which says less of it, fail too.
pub(super) async fn not_started(error: BootError, root: DriveFile) -> BootError {
    match tokio::time::timeout(COPY_FAILURE, root.complete()).await {
        Ok(Err(copying)) => copying.into(),
        _ => error,
    }
}

/// Adds the guest's last words to a failure. A dying VMM shows itself as a broken connection
/// first; its end is then the better explanation.
pub(super) async fn explain(failure: Failure, vmm: &Vmm) -> BootError {
    match failure {
        Failure::Boot(error) => error,
        Failure::Guest(error) => {
            let explained = matches!(
                error,
                GuestError::Agent(_) | GuestError::Protocol { .. } | GuestError::Announcement(_)
            );
            let bound = if explained { LAST_WORDS } else { VMM_END };
            let end = tokio::time::timeout(bound, vmm.exited()).await;
            match end {
                Ok(end) if !explained => ended(end),
                _ => BootError::Guest {
                    error,
                    console: Console::new(vmm.console()),
                },
            }
        }
    }
}

pub(super) fn ended(end: VmmEnd) -> BootError {
    BootError::Ended {
        status: end.status,
        console: Console::new(end.last_output),
        log: LastLog::new(end.last_log),
    }
}

/// Whether a VMM needs no KVM, because it emulates a CPU of its own.
pub(super) fn emulates(vmm: &Path) -> bool {
    vmm.file_name().is_some_and(|name| name == EMULATOR)
}

/// A failure on a host whose KVM is not what the VMM needs says so first. Nothing is refused
/// beforehand: a paravirtual KVM does run guests that are made for it.
pub(super) fn name_kvm(error: BootError, vmm: PathBuf) -> BootError {
    if emulates(&vmm) || !error.may_be_of_the_vmm() {
        return error;
    }
    match kvm::probe() {
        Kvm::Hardware => error,
        kvm => BootError::Kvm {
            vmm,
            kvm,
            source: Box::new(error),
        },
    }
}
