//! Firecracker, seen from the host: its process ([`Vmm`]) and its API ([`Client`]).
//!
//! A VMM here is whatever takes Firecracker's command line and speaks its HTTP API on a Unix socket; no other kind
//! is known. Launching, calling and ending one are bounded in time, and errors say what the VMM itself said: its
//! fault message, its exit status, the last lines of its console. Also here: [`FifoDrain`] for its log and metrics,
//! and [`host`], which finds out what VMM a host can use.
//!
//! What a VM is made of (which drives, which kernel, in which order) is not decided here.

pub mod api;
mod calls;
mod client;
mod error;
mod fifo;
pub mod host;
mod readiness;
mod source;
mod tail;
pub mod text;
mod vmm;

pub use client::{BOOT_BOUND, Client, DEFAULT_BOUND, DISK_BOUND};
pub use error::{ApiError, Call};
pub use fifo::{FifoDrain, FifoError, FifoTail};
pub use tail::{Excerpt, Tail};
pub use vmm::{
    LaunchError, MINIMUM_VERSION, ProcessExit, StartedVmm, StopError, Version, Vmm, VmmCommand,
    VmmEnd,
};
