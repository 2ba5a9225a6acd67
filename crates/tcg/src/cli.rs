//! Firecracker's command line.

use std::path::PathBuf;

use clap::Parser;

use crate::model::{Level, LoggerConfig};

/// Largest body of a request, in bytes, unless the command line says otherwise.
const DEFAULT_PAYLOAD_LIMIT: usize = 51200;

/// Longest id of a VM, in bytes.
const MAX_ID: usize = 64;

/// Firecracker's API and command line on top of QEMU's software emulation: for development, tests and
/// machines without KVM. It is not a security boundary.
#[derive(Debug, Parser)]
#[command(name = "firecracker-tcg", disable_version_flag = true)]
pub struct Cli {
    /// Path to unix domain socket used by the API; it must not exist.
    #[arg(long, default_value = "/run/firecracker.socket")]
    pub api_sock: PathBuf,
    /// MicroVM unique identifier: 1 to 64 letters, digits and dashes.
    #[arg(long, default_value = crate::logger::DEFAULT_ID)]
    pub id: String,
    /// Path to a JSON file with the whole configuration; the guest starts at once.
    #[arg(long)]
    pub config_file: Option<PathBuf>,
    /// Serve no API; needs --config-file.
    #[arg(long, requires = "config_file")]
    pub no_api: bool,
    /// Path to a file or fifo that takes the log.
    #[arg(long)]
    pub log_path: Option<PathBuf>,
    /// Least important level that is logged: Off, Error, Warning, Info, Debug or Trace.
    #[arg(long)]
    pub level: Option<String>,
    /// Log only what modules log whose path starts so.
    #[arg(long)]
    pub module: Option<String>,
    /// Show each log line's level.
    #[arg(long)]
    pub show_level: bool,
    /// Show each log line's place in the source.
    #[arg(long)]
    pub show_log_origin: bool,
    /// Path to a file or fifo that takes the metrics.
    #[arg(long)]
    pub metrics_path: Option<PathBuf>,
    /// Largest body of an API request, in bytes.
    #[arg(long, default_value_t = DEFAULT_PAYLOAD_LIMIT)]
    pub http_api_max_payload_size: usize,
    /// Path to a JSON file with the first content of the metadata's data store.
    #[arg(long)]
    pub metadata: Option<PathBuf>,
    /// Largest content of the metadata's data store, in bytes of JSON; that of a request's body unless given.
    #[arg(long)]
    pub mmds_size_limit: Option<usize>,
    /// Print Firecracker's version whose API this follows, and our own.
    #[arg(long)]
    pub version: bool,
    /// Print the paths that a jail must show to firecracker-tcg, for `firecracker-tcg.jail.json` beside it.
    #[arg(long)]
    pub print_jail_paths: bool,

    /// Taken and not needed: QEMU runs under its own system call filter, which stays on.
    #[arg(long)]
    pub no_seccomp: bool,
    /// Process start time (wall clock, microseconds); taken and not reported.
    #[arg(long)]
    pub start_time_us: Option<u64>,
    /// Process start CPU time (microseconds); taken and not reported.
    #[arg(long)]
    pub start_time_cpu_us: Option<u64>,
    /// Parent process CPU time (microseconds); taken and not reported.
    #[arg(long)]
    pub parent_cpu_time_us: Option<u64>,

    /// Refused: the filter is made for Firecracker's own threads.
    #[arg(long, conflicts_with = "no_seccomp")]
    pub seccomp_filter: Option<PathBuf>,
    /// Refused: there is no boot timer device.
    #[arg(long)]
    pub boot_timer: bool,
    /// Refused: the guest has no PCI bus.
    #[arg(long)]
    pub enable_pci: bool,
    /// Refused: there are no snapshots.
    #[arg(long)]
    pub snapshot_version: bool,
    /// Refused: there are no snapshots.
    #[arg(long)]
    pub describe_snapshot: Option<PathBuf>,
}

/// A command line that can be parsed but not obeyed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// `--id`: too short or long.
    #[error("Invalid instance ID: its length is {0}, it must be between 1 and {MAX_ID}")]
    IdLength(usize),
    /// `--id`: a forbidden character.
    #[error(
        "Invalid instance ID: character {0:?} at position {1} is neither a letter, a digit nor a dash"
    )]
    IdCharacter(char, usize),
    /// `--level`.
    #[error("Invalid value for logger level: {0}. Possible values: [Error, Warning, Info, Debug]")]
    Level(String),
    /// An option that means something we do not have.
    #[error("{option} is not offered by firecracker-tcg: {reason}")]
    NotOffered {
        /// The option.
        option: &'static str,
        /// Why not.
        reason: &'static str,
    },
}

impl Cli {
    /// Checks what clap cannot.
    ///
    /// # Errors
    /// The id is not valid, or an option is not offered.
    pub fn check(&self) -> Result<(), CliError> {
        check_id(&self.id)?;
        let refused = [
            (
                self.seccomp_filter.is_some(),
                "--seccomp-filter",
                "QEMU's own system call filter is used",
            ),
            (
                self.boot_timer,
                "--boot-timer",
                "there is no boot timer device",
            ),
            (self.enable_pci, "--enable-pci", "the guest has no PCI bus"),
            (
                self.snapshot_version,
                "--snapshot-version",
                "there are no snapshots",
            ),
            (
                self.describe_snapshot.is_some(),
                "--describe-snapshot",
                "there are no snapshots",
            ),
        ];
        match refused.into_iter().find(|(given, ..)| *given) {
            Some((_, option, reason)) => Err(CliError::NotOffered { option, reason }),
            None => Ok(()),
        }
    }

    /// The logger's options.
    ///
    /// # Errors
    /// The level is none.
    pub fn logger(&self) -> Result<LoggerConfig, CliError> {
        let level: Option<Level> = match &self.level {
            Some(level) => Some(level.parse().map_err(|_| CliError::Level(level.clone()))?),
            None => None,
        };
        Ok(LoggerConfig {
            log_path: self.log_path.clone(),
            level,
            show_level: self.show_level.then_some(true),
            show_log_origin: self.show_log_origin.then_some(true),
            module: self.module.clone(),
        })
    }
}

fn check_id(id: &str) -> Result<(), CliError> {
    if id.is_empty() || id.len() > MAX_ID {
        return Err(CliError::IdLength(id.len()));
    }
    match id
        .chars()
        .enumerate()
        .find(|(_, c)| !(*c == '-' || c.is_alphanumeric()))
    {
        Some((at, c)) => Err(CliError::IdCharacter(c, at)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(args: &[&str]) -> Cli {
        Cli::try_parse_from([&["firecracker"], args].concat()).unwrap()
    }

    #[test]
    fn what_the_jailer_and_the_runtime_pass() {
        let cli = cli(&[
            "--api-sock",
            "firecracker.sock",
            "--id",
            "vm-1",
            "--start-time-us",
            "1",
            "--start-time-cpu-us",
            "2",
            "--parent-cpu-time-us",
            "3",
        ]);
        assert_eq!(cli.check(), Ok(()));
        assert_eq!(cli.http_api_max_payload_size, 51200);
    }

    #[test]
    fn refusals() {
        assert_eq!(cli(&["--id", ""]).check(), Err(CliError::IdLength(0)));
        assert_eq!(
            cli(&["--id", &"a".repeat(65)]).check(),
            Err(CliError::IdLength(65))
        );
        assert_eq!(
            cli(&["--id", "a_b"]).check(),
            Err(CliError::IdCharacter('_', 1))
        );
        assert!(matches!(
            cli(&["--enable-pci"]).check(),
            Err(CliError::NotOffered { .. })
        ));
        assert_eq!(
            cli(&["--level", "x"]).logger(),
            Err(CliError::Level("x".into()))
        );
        assert!(Cli::try_parse_from(["firecracker", "--no-api"]).is_err());
        assert!(Cli::try_parse_from(["firecracker", "--nonsense"]).is_err());
    }
}
