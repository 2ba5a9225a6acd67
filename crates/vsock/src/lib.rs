//! Host side of a VM's vsock, over the Unix sockets that Firecracker puts in its place.
//!
//! - Host to guest ([`connect`]): connect to the device's socket, send `CONNECT <port>\n`, read
//!   `OK <host port>\n`; from then on the stream is the connection. Source: Firecracker's `docs/vsock.md`.
//! - Guest to host ([`Listener`]): Firecracker connects to `<socket>_<port>`, where we listen.
//!
//! The guest is not trusted: a reply is bounded in length and time. Nothing here knows what travels over a
//! connection.

#![forbid(unsafe_code)]

mod connect;
mod listener;
pub mod unix;

pub use connect::{ConnectError, RETRY_INTERVAL, connect, connect_retry};
pub use listener::Listener;
