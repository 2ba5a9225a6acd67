//! The OCI runtime (crun or runc) as a command, and what it is given.

mod console;
mod error;
mod runtime;
mod scratch;
pub mod spec;
pub(crate) mod user;

pub use console::{ConsoleError, set_size};
pub use error::RuntimeError;
pub use runtime::{Launch, Runtime, Started};
