//! The control API (ttrpc service `Firecracker`) for all VMs of a host, on top of
//! `fc-vm`. The daemon `firecracker-control` serves it on a socket; without the
//! daemon a program uses the same through [`client::connect`].
//!
//! - [`host`]: the calls: which shim they belong to, and what happens when there is none.
//! - `create`, `stop`: the two calls that begin and end a shim.
//! - `watch`, `log`: what happens when a shim ends by itself, and its log.
//! - `bury`: what a dead shim left goes, and containerd is told.
//! - [`service`]: the calls on the wire.
//! - [`client`]: a client, of the daemon or of this very process.
//! - [`socket`]: an address that only one daemon serves.
//! - [`proxy`]: containerd's ttrpc address, shared with containerd.
//!
//! What is not here: how a VM boots and stops, which is its shim's business. Nothing about a VM is
//! remembered here: what there is, is found on disk and by locks, so that the daemon may be killed at any time.

mod bury;
pub mod client;
mod create;
pub mod error;
pub mod host;
mod log;
pub mod proxy;
pub mod service;
pub mod socket;

mod stop;
mod watch;
