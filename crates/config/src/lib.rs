//! The runtime's configuration file, `/etc/containerd/firecracker-runtime.json`.
//!
//! One JSON object with the original runtime's keys and defaults, and some of our own; `docs/configuration.md`
//! is for people, [`Config`] for code. Keys match whatever their case, as Go's JSON does; `null` means the
//! default. A key that nobody reads is a [`Warning`]; anything else that is wrong is a [`ConfigError`] that
//! says where.
//!
//! Values are checked here as far as the file alone allows. Whether a path exists is found out by what uses it.

#![forbid(unsafe_code)]

mod config;
mod cpu;
mod document;
mod error;
mod load;
mod log_levels;
pub mod network;
mod unknown;

pub use config::{Config, JailerConfig};
pub use cpu::is_intel;
pub use error::{ConfigError, Place};
pub use load::{DEFAULT_PATH, Loaded, PATH_ENV};
pub use log_levels::{Level, LogLevels};
pub use network::{
    CniArg, CniConfig, IpConfig, NetworkInterface, NetworkSource, RateLimiter, StaticConfig,
    TokenBucket,
};
pub use unknown::Warning;
