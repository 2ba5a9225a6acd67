//! What is known of a VM while it boots, for whoever watches: its output, its VMM, and what the time went into.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fc_client::Tail;

use crate::timeline::now_ns;

/// Whom a part of a VM's start waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitsFor {
    /// Nobody: the work is ours.
    Nobody,
    /// The VMM's process.
    Vmm,
    /// The guest.
    Guest,
    /// The OCI runtime that makes the jail.
    OciRuntime,
}

impl WaitsFor {
    /// As the VM service has it: `""`, `vmm`, `guest` or `oci-runtime`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "",
            Self::Vmm => "vmm",
            Self::Guest => "guest",
            Self::OciRuntime => "oci-runtime",
        }
    }
}

/// A part of a VM's start that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// What was done.
    pub name: &'static str,
    /// When it began, in nanoseconds since 1970.
    pub start_unix_ns: u64,
    /// How long it took.
    pub duration: Duration,
    /// Whom it waited for.
    pub waits_for: WaitsFor,
}

/// The VMM of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmInfo {
    /// Its process id on the host.
    pub pid: u32,
    /// Its program.
    pub path: PathBuf,
    /// Its version.
    pub version: String,
}

/// What is known of a VM that boots or runs. Clones share it; it outlives the VM.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    console: Tail,
    vmm_log: Tail,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    vmm: Option<VmmInfo>,
    spans: Vec<Span>,
    doing: &'static str,
}

impl Progress {
    /// The VMM's output, the guest's console among it.
    #[must_use]
    pub fn console(&self) -> Tail {
        self.console.clone()
    }

    /// The VMM's own log; empty when a caller of CreateVM reads it.
    #[must_use]
    pub fn vmm_log(&self) -> Tail {
        self.vmm_log.clone()
    }

    /// The VMM, once its API answered.
    #[must_use]
    pub fn vmm(&self) -> Option<VmmInfo> {
        self.known().vmm.clone()
    }

    /// The parts of the VM's start that are over, in the order of their ends.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        self.known().spans.clone()
    }

    /// Adds a part that was measured elsewhere.
    pub fn record(&self, span: Span) {
        self.known().spans.push(span);
    }

    pub(super) fn set_vmm(&self, vmm: VmmInfo) {
        self.known().vmm = Some(vmm);
    }

    /// Begins a part, which is over when the answer is dropped.
    pub(super) fn begin(&self, name: &'static str, waits_for: WaitsFor) -> Running {
        self.known().doing = name;
        Running {
            progress: self.clone(),
            name,
            waits_for,
            start_unix_ns: now_ns(),
            start: Instant::now(),
        }
    }

    /// The part that began last.
    pub(super) fn doing(&self) -> &'static str {
        self.known().doing
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Every change is complete before anything can panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a VM's start that is not over.
pub(super) struct Running {
    progress: Progress,
    name: &'static str,
    waits_for: WaitsFor,
    start_unix_ns: u64,
    start: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.progress.record(Span {
            name: self.name,
            start_unix_ns: self.start_unix_ns,
            duration: self.start.elapsed(),
            waits_for: self.waits_for,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_recorded_as_they_end() {
        let progress = Progress::default();
        let outer = progress.begin("outer", WaitsFor::Guest);
        drop(progress.begin("inner", WaitsFor::Nobody));
        assert_eq!(progress.doing(), "inner");
        drop(outer);
        let spans = progress.spans();
        let names: Vec<_> = spans
            .iter()
            .map(|s| (s.name, s.waits_for.as_str()))
            .collect();
        assert_eq!(names, [("inner", ""), ("outer", "guest")]);
        assert!(spans[1].duration >= spans[0].duration);
        assert!(spans[1].start_unix_ns <= spans[0].start_unix_ns);
    }
}
