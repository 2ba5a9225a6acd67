//! What this host's KVM is good for.
//!
//! `/dev/kvm` also opens where there is no hardware virtualization: a paravirtual KVM runs guests that were
//! made for it and interprets, instruction by instruction, what it cannot run. Ordinary guest kernels die there.
//! So a few instructions are really run: those that a processor just executes and an interpreter of kernel
//! code does not know.

use std::fmt;

use rustix::io::Errno;

#[cfg(target_arch = "x86_64")]
mod bounded;
#[cfg(target_arch = "x86_64")]
mod trial;
#[cfg(not(target_arch = "x86_64"))]
#[path = "open_only.rs"]
mod trial;

/// What [`probe`] found. The reasons are parts of a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    /// Ordinary guests run.
    Hardware,
    /// KVM is there, and does not run ordinary guests.
    Paravirtual {
        /// What showed it.
        why: String,
    },
    /// This process may not use it.
    Denied {
        /// The system's answer.
        why: String,
    },
    /// It is there, and does not work.
    Unusable {
        /// What failed.
        why: String,
    },
    /// This host has no `/dev/kvm`.
    Absent,
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware => f.write_str("KVM runs ordinary guests"),
            Self::Paravirtual { why } => {
                write!(
                    f,
                    "KVM is paravirtual and does not run ordinary guests ({why})"
                )
            }
            Self::Denied { why } => write!(f, "/dev/kvm may not be opened ({why})"),
            Self::Unusable { why } => write!(f, "KVM does not work ({why})"),
            Self::Absent => f.write_str("this host has no /dev/kvm"),
        }
    }
}

/// Finds out, by running a guest of a few instructions. Blocks for some milliseconds, longer on a busy host
/// and never without end, and leaves nothing behind.
#[must_use]
pub fn probe() -> Kvm {
    trial::run(&trial::ORDINARY)
}

/// What a failure to open `/dev/kvm` means.
fn not_opened(error: std::io::Error) -> Kvm {
    match error.kind() {
        std::io::ErrorKind::NotFound => Kvm::Absent,
        std::io::ErrorKind::PermissionDenied => Kvm::Denied {
            why: error.to_string(),
        },
        // The node exists, and no driver is behind it.
        _ if matches!(
            Errno::from_io_error(&error),
            Some(Errno::NODEV | Errno::NXIO)
        ) =>
        {
            Kvm::Absent
        }
        _ => Kvm::Unusable {
            why: format!("/dev/kvm: {error}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::time::{Duration, Instant};

    /// Far above what a busy host needs: what takes longer hangs.
    const HANGS: Duration = Duration::from_secs(60);

    /// Whether the processor that Linux sees has hardware virtualization; KVM needs it to be a hardware one.
    fn has_vmx_or_svm() -> bool {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").expect("cpuinfo");
        cpuinfo
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_probe_agrees_with_the_processor() {
        let start = Instant::now();
        let kvm = probe();
        println!("{kvm}, found in {:?}", start.elapsed());
        assert!(start.elapsed() < HANGS);
        match kvm {
            Kvm::Hardware => assert!(has_vmx_or_svm()),
            Kvm::Paravirtual { .. } => assert!(!has_vmx_or_svm()),
            other => println!("SKIPPED: no usable KVM here: {other}"),
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn an_endless_guest_does_not_hang_the_probe() {
        if let Kvm::Absent | Kvm::Denied { .. } | Kvm::Unusable { .. } = probe() {
            println!("SKIPPED: no usable KVM here");
            return;
        }
        let start = Instant::now();
        let kvm = trial::run(&trial::ENDLESS);
        assert!(matches!(kvm, Kvm::Paravirtual { .. }), "{kvm:?}");
        assert!(start.elapsed() < HANGS);
    }

    #[test]
    fn failures_to_open_are_told_apart() {
        let kvm = |errno| not_opened(io::Error::from_raw_os_error(errno));
        assert_eq!(kvm(2), Kvm::Absent);
        assert_eq!(kvm(19), Kvm::Absent);
        assert!(matches!(kvm(13), Kvm::Denied { .. }));
        assert!(matches!(kvm(12), Kvm::Unusable { .. }));
    }
}
