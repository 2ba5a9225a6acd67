//! The files through which a command of the OCI runtime is told things and answers.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use serde::Deserialize;

use super::error::RuntimeError;

/// Files of one command, removed on drop.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    const SUFFIXES: [&str; 5] = ["log", "pid", "process", "resources", "console"];

    /// Files whose names start with `stem`.
    pub(super) fn new(stem: PathBuf) -> Self {
        Self(stem)
    }

    /// The file for one purpose; only those in [`Self::SUFFIXES`] are removed.
    pub(super) fn path(&self, suffix: &'static str) -> PathBuf {
        debug_assert!(Self::SUFFIXES.contains(&suffix));
        self.0.with_extension(suffix)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for suffix in Self::SUFFIXES {
            // Most of them were not made.
            let _ = fs::remove_file(self.path(suffix));
        }
    }
}

/// The process id that the runtime left in a file.
pub(super) fn read_pid(path: PathBuf) -> Result<Pid, RuntimeError> {
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(pid) if pid > 1 => Ok(Pid::from_raw(pid)),
            _ => Err(RuntimeError::Pid { path, source: None }),
        },
        Err(source) => Err(RuntimeError::Pid {
            path,
            source: Some(source),
        }),
    }
}

/// One line of the runtime's log.
#[derive(Deserialize)]
struct LogLine {
    msg: String,
    #[serde(default)]
    level: String,
}

/// The last error in a log of JSON lines.
pub(super) fn last_error(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<LogLine>(line).ok());
    // Warnings only count when there is nothing worse.
    lines
        .max_by_key(|line| line.level == "error")
        .map(|line| line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_its_message() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_error(&log), None);
        fs::write(
            &log,
            "{\"msg\":\"first\",\"level\":\"error\"}\n{\"msg\":\"second\",\"level\":\"error\"}\n\
             {\"msg\":\"note\",\"level\":\"warning\"}\nrubbish\n",
        )
        .unwrap();
        assert_eq!(last_error(&log).as_deref(), Some("second"));
    }

    #[test]
    fn a_pid_file_without_a_number_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        assert!(read_pid(path.clone()).is_err());
        fs::write(&path, "x").unwrap();
        assert!(read_pid(path.clone()).is_err());
        fs::write(&path, "42\n").unwrap();
        assert_eq!(read_pid(path).unwrap(), Pid::from_raw(42));
    }
}
