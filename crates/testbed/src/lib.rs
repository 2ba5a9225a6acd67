//! What it takes to run the product on one machine without touching what is
//! installed there: a private containerd, a locally made image, the phase table
//! of a run, a check of what a run left behind, and how long its drives took.
//!
//! `make run` (the binary beside this library) and the end-to-end tests share
//! it. Product code never depends on it.

pub mod containerd;
pub mod image;
pub mod leftovers;
pub mod measure;
pub mod phases;
pub mod runtime_config;
pub mod setup;

/// Whether KVM on this machine runs ordinary guests, so that a real Firecracker can be used.
#[must_use]
pub fn hardware_kvm() -> bool {
    matches!(
        fc_client::host::kvm::probe(),
        fc_client::host::kvm::Kvm::Hardware
    )
}
