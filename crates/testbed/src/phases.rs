//! The phase table of one run, made from the timeline that every part of the
//! product appends to when the configuration has `timeline_path`.

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

/// One line of the timeline file.
#[derive(Debug, Clone, Deserialize)]
pub struct Moment {
    /// When, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// What happened; see [`ROWS`] for the names used here.
    pub event: String,
    /// The VM's id; empty where none is known yet.
    #[serde(default)]
    pub vm: String,
    /// The container's id; empty for what concerns the VM.
    #[serde(default)]
    pub task: String,
}

/// Rows of the table: a title and the event that ends the phase. A phase begins where the one
/// before it ended.
pub const ROWS: [(&str, &str); 10] = [
    ("containerd prepares", "start_begin"),
    ("shim start", "vmm_spawned"),
    ("VMM up", "instance_started"),
    ("kernel to init", "guest_init"),
    ("agent ready", "agent_connected"),
    ("rootfs attached", "rootfs_attached"),
    ("task created", "task_created"),
    ("first output", "first_output"),
    ("exit", "task_exited"),
    ("teardown", "end"),
];

/// Reads a timeline file; lines that are not complete are left out.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> std::io::Result<Vec<Moment>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// One phase of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// The row's title.
    pub title: &'static str,
    /// How long it took.
    pub ms: f64,
}

/// Cuts the time from `begin_ns` to `end_ns` into phases. A phase whose event did not happen
/// (no output, say) is left out and its time counts for the next one.
#[must_use]
pub fn phases(moments: &[Moment], begin_ns: u64, end_ns: u64) -> Vec<Phase> {
    let mut rows = Vec::new();
    let mut from = begin_ns;
    for (title, event) in ROWS {
        let at = if event == "end" {
            Some(end_ns)
        } else {
            moments
                .iter()
                .filter(|m| m.event == event && m.unix_ns >= begin_ns)
                .map(|m| m.unix_ns)
                .min()
        };
        if let Some(at) = at {
            // Clocks of host and guest are compared: a small step back is no time, not an error.
            rows.push(Phase {
                title,
                ms: millis(at.saturating_sub(from)),
            });
            from = from.max(at);
        }
    }
    rows
}

/// The table as text, with the sum of its rows and the wall time beside it.
#[must_use]
pub fn table(phases: &[Phase], wall_ns: u64) -> String {
    let mut text = String::new();
    let sum: f64 = phases.iter().map(|p| p.ms).sum();
    for Phase { title, ms } in phases {
        let _ = writeln!(text, "  {title:<20} {ms:>9.1} ms");
    }
    let _ = writeln!(
        text,
        "  {:<20} {sum:>9.1} ms (wall time {:.1} ms)",
        "sum",
        millis(wall_ns)
    );
    text
}

#[allow(clippy::cast_precision_loss)] // nanoseconds of one run fit a double's 53 bits
fn millis(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(event: &str, unix_ns: u64) -> Moment {
        Moment {
            unix_ns,
            event: event.to_owned(),
            vm: String::new(),
            task: String::new(),
        }
    }

    #[test]
    fn rows_add_up_and_missing_events_join_the_next_row() {
        let moments = [
            moment("start_begin", 2_000_000),
            moment("vmm_spawned", 5_000_000),
            moment("task_exited", 9_000_000),
            moment("vmm_spawned", 500_000), // of an earlier run
        ];
        let rows = phases(&moments, 1_000_000, 10_000_000);
        let titles: Vec<_> = rows.iter().map(|p| p.title).collect();
        assert_eq!(
            titles,
            ["containerd prepares", "shim start", "exit", "teardown"]
        );
        let sum: f64 = rows.iter().map(|p| p.ms).sum();
        assert!((sum - 9.0).abs() < 1e-9, "{sum}");
    }
}
