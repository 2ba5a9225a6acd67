//! What the OCI runtime's commands can fail with.

use std::io;
use std::path::PathBuf;

use super::console::ConsoleError;

/// Why a command of the OCI runtime failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// None is installed.
    #[error("No OCI runtime ({0}) found in PATH={1}")]
    NotFound(String, String),
    /// It could not be executed, or its pipes could not be made.
    #[error("Cannot execute OCI runtime {program}")]
    Spawn {
        /// What was to be executed.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It said no.
    #[error("OCI runtime {command} failed: {message}")]
    Failed {
        /// `create`, `start`, ...
        command: &'static str,
        /// The runtime's own message.
        message: String,
    },
    /// It did not leave the id of the process it started.
    #[error("OCI runtime left no usable process id in {path}")]
    Pid {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read; none when it holds no number.
        #[source]
        source: Option<io::Error>,
    },
    /// It answered something else than expected.
    #[error("OCI runtime {command} answered what cannot be understood")]
    Answer {
        /// `ps`.
        command: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file for it could not be written.
    #[error("Cannot write {path} for the OCI runtime")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its terminal.
    #[error(transparent)]
    Console(#[from] ConsoleError),
}
