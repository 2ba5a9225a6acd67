//! Firecracker's HTTP API: from bytes to an [`Action`], and from its outcome to bytes.

mod request;
mod server;

pub use request::{Action, parse};
pub use server::{Server, ServerError};
