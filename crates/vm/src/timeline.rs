//! The phase table's raw material: one JSON line per event, appended by whoever saw it happen.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Appends events of one VM to a file that all parts of the system share.
/// Without a path it does nothing. A failed write is not reported: measuring
/// must not change what is measured.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    path: Option<PathBuf>,
    vm: String,
}

#[derive(Serialize)]
struct Line<'a> {
    unix_ns: u64,
    vm: &'a str,
    task: &'a str,
    event: &'a str,
}

impl Timeline {
    /// A timeline of the VM `vm`, written to `path` (config key `timeline_path`).
    #[must_use]
    pub fn new(path: Option<&Path>, vm: &str) -> Self {
        Self {
            path: path.map(Path::to_owned),
            vm: vm.to_owned(),
        }
    }

    /// Records an event of the VM that happens now.
    pub fn vm(&self, event: &str) {
        self.task("", event);
    }

    /// Records an event of a task that happens now.
    pub fn task(&self, task: &str, event: &str) {
        self.at(now_ns(), task, event);
    }

    /// Records an event that happened at `unix_ns`, nanoseconds since 1970.
    pub fn at(&self, unix_ns: u64, task: &str, event: &str) {
        let Some(path) = &self.path else { return };
        let line = Line {
            unix_ns,
            vm: &self.vm,
            task,
            event,
        };
        // A struct of strings and a number always serializes.
        let Ok(mut line) = serde_json::to_vec(&line) else {
            return;
        };
        line.push(b'\n');
        let file = OpenOptions::new().append(true).create(true).open(path);
        // One write per line, so lines of several processes do not mix.
        let _ = file.and_then(|mut f| f.write_all(&line));
    }
}

/// Nanoseconds since 1970, now.
#[must_use]
pub fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("timeline");
        let timeline = Timeline::new(Some(&path), "vm1");
        timeline.vm("shim_serving");
        timeline.at(7, "task1", "task_created");
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["event"], "shim_serving");
        assert_eq!(
            lines[1],
            serde_json::json!({"unix_ns": 7, "vm": "vm1", "task": "task1", "event": "task_created"})
        );
    }
}
