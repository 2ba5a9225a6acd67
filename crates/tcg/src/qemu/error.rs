use std::io;
use std::path::PathBuf;

/// Anything that goes wrong with QEMU. The texts end up in fault messages, so they tell the whole cause.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// No program of that name.
    #[error(
        "Cannot find qemu-system-x86_64 on PATH: install QEMU 10 or newer (Debian: package qemu-system-x86; on \
         Debian 12 from bookworm-backports). In a jail it has to be shown: write its list with `firecracker-tcg \
         --print-jail-paths > firecracker-tcg.jail.json` beside the program"
    )]
    NotInstalled,
    /// `FIRECRACKER_TCG_QEMU` names no program.
    #[error("{variable} names {path}, which is not an executable file", path = path.display())]
    NotExecutable {
        /// The environment variable.
        variable: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// Releases before 10 corrupt guests' registers under TCG.
    #[error(
        "QEMU {found} is too old, guests crash in it: install QEMU 10 or newer (Debian 12: package \
         qemu-system-x86 from bookworm-backports)"
    )]
    TooOld {
        /// `major.minor.micro`.
        found: String,
    },
    /// The process could not be made.
    #[error("Cannot start {path}: {error}", path = path.display())]
    Spawn {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The host refused a descriptor, a thread or memory.
    #[error("Cannot prepare {what} for QEMU: {error}")]
    Prepare {
        /// What for.
        what: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It ended before the guest ran.
    #[error("QEMU ended ({end}): {output}")]
    Ended {
        /// Exit status.
        end: String,
        /// The last lines it wrote to standard error.
        output: String,
    },
    /// It refused a command.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The QMP command.
        command: &'static str,
        /// QEMU's description.
        reason: String,
    },
    /// No answer within the bound.
    #[error("QEMU did not answer {command} within {seconds} s")]
    Timeout {
        /// The QMP command.
        command: &'static str,
        /// The bound.
        seconds: u64,
    },
    /// The connection has ended, as it does when QEMU exits.
    #[error("QEMU is gone: no answer to {command}")]
    Gone {
        /// The QMP command.
        command: &'static str,
    },
    /// It speaks something else.
    #[error("QEMU sent what is not QMP: {0}")]
    Protocol(String),
}
