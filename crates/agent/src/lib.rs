//! The program that runs containers inside a VM on behalf of the host's shim.
//!
//! - [`server`] puts the parts together; [`pid1`] and [`machine`] are about the machine as a whole.
//! - [`task`] holds containers and processes and serves containerd's task API; it has the work
//!   done by [`oci`] (the OCI runtime), [`stdio`] (streams to the host), [`mount`], [`cgroup`].
//! - [`drives`] serves the mounting of drives, [`events`] the long-poll, [`own`] what the original's
//!   agent lacks, with [`configure`] and [`export`] behind it.
//! - [`volume_init`] is another program in the same file, which containers run.
//! - [`reaper`] collects exit statuses; [`fd`], [`transport`], [`uevent`], [`tracker`] are tools.
//!
//! Everything runs on one thread; what waits for a disk runs beside it. A library only so that
//! the parts can be tested; the interface is the guest protocol (`fc_proto::guest`).

pub mod announce;
pub mod args;
pub mod cgroup;
pub mod configure;
pub mod drives;
pub mod events;
pub mod export;
pub mod fd;
pub mod log;
pub mod machine;
pub mod modules;
pub mod mount;
pub mod oci;
pub mod own;
pub mod pid1;
pub mod reaper;
mod rpc;
pub mod server;
pub mod stdio;
pub mod task;
pub mod tracker;
pub mod transport;
pub mod uevent;
pub mod volume_init;
