//! Printing for people and for programs.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Who reads what is printed.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Prints JSON, or text.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints `value` as JSON, or what `text` makes of it.
    pub fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        if self.json {
            // Everything printed here is made of strings, numbers and lists: it always is JSON.
            let json = serde_json::to_string_pretty(value).unwrap_or_default();
            emit(&json);
        } else {
            emit(&text(value));
        }
    }

    /// Whether a person watches and wants to see progress.
    pub fn shows_progress(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }
}

/// Prints a text and a line's end. A reader that has gone away is no error (`| head`).
pub fn emit(text: &str) {
    if text.is_empty() {
        return;
    }
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush());
}

/// A table whose columns are as wide as they need; the first row is its head.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago a moment was, in the two largest units that matter; `-` for a moment that never was.
pub fn ago(unix_ns: i64) -> String {
    let Ok(then) = u64::try_from(unix_ns) else {
        return "-".to_owned();
    };
    if then == 0 {
        return "-".to_owned();
    }
    let then = UNIX_EPOCH + Duration::from_nanos(then);
    age(SystemTime::now().duration_since(then).unwrap_or_default())
}

fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["ID", "STATE"], ["long-name", "running"]];
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|row| row.map(str::to_owned).to_vec())
            .collect();
        assert_eq!(table(&rows), "ID         STATE\nlong-name  running\n");
    }

    #[test]
    fn ages() {
        for (seconds, text) in [(5, "5s"), (65, "1m5s"), (7260, "2h1m"), (100_000, "1d3h")] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
        assert_eq!((ago(0), ago(-1)), ("-".to_owned(), "-".to_owned()));
    }
}
