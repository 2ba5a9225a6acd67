//! Firecracker's API and command line on top of QEMU's software emulation.
//!
//! A program written for Firecracker 1.15 finds the same command line, HTTP API, state machine, fault messages,
//! vsock sockets and exit codes; the guest runs in a QEMU microvm under TCG. QEMU starts at `InstanceStart` and
//! never outlives this process.
//!
//! - [`cli`], [`run`]: the program. [`exit`]: its exit codes. [`jail`]: what a jail must show it. [`logger`], [`metrics`], [`traffic`]: its output.
//! - [`api`]: HTTP; [`model`]: the bodies; [`fault`]: the failures.
//! - [`controller`]: what is allowed when; [`resources`], [`drive`], [`interface`], [`tap`], [`vsock`]: the configuration
//!   before the start.
//! - [`machine`], [`console`]: the running guest; [`qemu`]: the process behind it.
//! - [`mmds`]: the metadata service.
//! - [`limit`], [`relay`], [`entropy`]: rate limiters of network interfaces and of the entropy device. [`readiness`]: descriptors in the event loop.
//! - [`boot_args`], [`tsc`], [`kernel_image`], [`initrd`]: what QEMU needs that Firecracker does not.
//!
//! Nothing here knows of containers, of containerd or of what runs in the guest.

pub mod api;
pub mod boot_args;
pub mod cli;
pub mod console;
pub mod controller;
pub mod drive;
pub mod entropy;
pub mod exit;
pub mod fault;
pub mod initrd;
pub mod interface;
pub mod jail;
pub mod kernel_image;
pub mod limit;
pub mod logger;
pub mod machine;
pub mod metrics;
pub mod mmds;
pub mod model;
pub mod qemu;
pub mod readiness;
pub mod relay;
pub mod resources;
pub mod run;
pub mod tap;
pub mod traffic;
pub mod tsc;
pub mod vsock;
