//! A virtio-vsock device in process, served to QEMU over vhost-user, with
//! Firecracker's protocol on the host's side.
//!
//! - `device`: the public [`VsockDevice`]: threads, start and end.
//! - `backend`, `queues`: vhost-user and virtqueues; nothing about connections.
//! - `muxer`, `ports`: all connections, their sockets' events, ports and limits.
//! - `connection`, `credit`, `tx_buffer`: one connection; no queues, no epoll.
//! - `counters`: what has gone over the device.
//! - `header`, `connect_line`: parsers of what the guest and host programs say.
//! - `host_sockets`: the Unix sockets themselves.
//! - `fuzzing`: entry points for fuzz targets, with the feature of that name.
//!
//! One thread moves all data, driven by epoll; a second one answers QEMU's
//! control messages and a third waits for that to end. The guest is hostile:
//! whatever it puts into queues and packets ends at worst its own connections,
//! and costs a bounded amount of memory. What a side has sent on an established
//! connection is delivered even if it closes at once; a host program that closes
//! before `OK` has given up, and what it sent is forgotten.
//!
//! Differences from Firecracker's device: `CONNECT` lines may arrive in pieces;
//! a host program's half-close reaches the guest as a half-close; 8192
//! connections rather than 1023; closing connections are never cut short by a
//! timer; a host program's request that the guest leaves unanswered stays open
//! until the program gives up, where Firecracker closes it after two seconds,
//! which an emulated guest may need.

mod backend;
mod connect_line;
mod connection;
mod counters;
mod credit;
mod device;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod header;
mod host_sockets;
mod muxer;
mod ports;
mod queues;
mod tx_buffer;

pub use counters::VsockCounters;
pub use device::{DeviceEnd, VsockConfig, VsockDevice};
pub use error::{VsockError, WorkerError};
