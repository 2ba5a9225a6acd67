//! What can be wrong with the file.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A place in the file, shown as `file:line:column`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in bytes, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or unreadable.
    #[error(
        "Cannot read the runtime's configuration {} (its path can be set with {})",
        path.display(),
        crate::PATH_ENV
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not JSON.
    #[error("Configuration {place}: not valid JSON, {}: {problem}", near(key))]
    Syntax {
        /// Where reading stopped.
        place: Place,
        /// The last key that was read before that; empty if there was none.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A key's value has the wrong type or is out of range.
    #[error("Configuration {place}: {}{problem}", of(key))]
    Value {
        /// Where the value starts, or where in it the problem is.
        place: Place,
        /// The key, with the keys above it: `jailer.runc_binary_path`; empty for the whole file.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

fn near(key: &str) -> String {
    if key.is_empty() {
        "before the first key".to_owned()
    } else {
        format!("in or after key {key}")
    }
}

fn of(key: &str) -> String {
    if key.is_empty() {
        String::new()
    } else {
        format!("{key}: ")
    }
}
