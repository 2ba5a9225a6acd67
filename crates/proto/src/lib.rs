//! Everything that crosses a process or machine boundary, and nothing else.
//!
//! - [`control`]: the control API (ttrpc service `Firecracker`).
//! - [`guest`]: what shim and agent say to each other: services, ports, the announcement.
//! - [`image`]: the manifest of a guest image directory.
//! - [`vm`]: our own service on a VM's control socket: status, console, logs.
//! - [`task`]: containerd's task API, version 2, which both containerd and the agent speak.
//!
//! Messages are generated from `proto/` at the workspace root. No logic beyond
//! naming and encoding belongs here.

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub mod control;
pub mod guest;
pub mod image;
pub mod task;
pub mod vm;

/// Key of a request's metadata under which its containerd namespace travels.
pub const NAMESPACE_KEY: &str = "containerd-namespace-ttrpc";

pub use containerd_shim_protos as containerd;
pub use protobuf;
pub use ttrpc;
