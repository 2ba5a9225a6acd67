//! What the host can do: which VMM fits it.

pub mod kvm;
pub mod vmm;
