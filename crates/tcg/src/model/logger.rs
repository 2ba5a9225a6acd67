use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `PUT /logger`; absent fields leave what was set before, except the level, which goes back to Info.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerConfig {
    /// File or named pipe that takes the log.
    pub log_path: Option<PathBuf>,
    /// Least important level that is logged.
    pub level: Option<Level>,
    /// Whether lines tell their level.
    pub show_level: Option<bool>,
    /// Whether lines tell the file and line that logged them.
    pub show_log_origin: Option<bool>,
    /// Only lines of modules whose path starts so.
    pub module: Option<String>,
}

/// Log levels; any case, and `Warning` as well as `Warn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String")]
#[allow(missing_docs)]
pub enum Level {
    Off,
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// The text is no level.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid LevelFilter")]
pub struct UnknownLevel;

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "off" => Self::Off,
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "info" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" => Self::Error,
            _ => return Err(UnknownLevel),
        })
    }
}

impl TryFrom<String> for Level {
    type Error = UnknownLevel;

    fn try_from(text: String) -> Result<Self, UnknownLevel> {
        text.parse()
    }
}

impl From<Level> for log::LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => Self::Off,
            Level::Trace => Self::Trace,
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warn => Self::Warn,
            Level::Error => Self::Error,
        }
    }
}
