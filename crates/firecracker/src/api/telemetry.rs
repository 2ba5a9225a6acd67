//! The VMM's log and metrics.

use serde::{Deserialize, Serialize};

/// `PUT /logger`. What is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logger {
    /// The file or FIFO that gets the log. Initially the VMM's standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<String>,
    /// `Off`, `Error`, `Warning`, `Info`, `Debug` or `Trace`. Initially `Info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Whether each line has its level. Initially false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether each line has the source file and line it comes from. Initially false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
}

/// `PUT /metrics`, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// The file or FIFO that gets a line of JSON every minute and when asked.
    pub metrics_path: String,
}
