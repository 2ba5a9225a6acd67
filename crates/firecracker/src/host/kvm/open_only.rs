//! Elsewhere than on x86_64 a KVM that makes a VM is a hardware one: it is opened, and that is all.

use std::fs::OpenOptions;

use super::{Kvm, not_opened};

/// There is nothing to run.
pub(super) const ORDINARY: () = ();

pub(super) fn run(_: &()) -> Kvm {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Kvm::Hardware,
        Err(error) => not_opened(error),
    }
}
