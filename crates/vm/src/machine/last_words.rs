//! What a guest and its VMM said last, as a suffix of an error text.

use std::fmt;

use super::diagnosis::{PANIC, diagnose};

/// Lines of each kind in an error text.
const LINES: usize = 15;

/// The guest's last console lines, as a suffix of an error text.
#[derive(Debug, Clone, Default)]
pub struct Console(Vec<String>);

impl Console {
    /// Keeps what tells something: not the registers and the call trace after a panic, and the
    /// VMM's own log lines only when the guest said nothing.
    #[must_use]
    pub fn new(mut lines: Vec<String>) -> Self {
        lines.retain(|line| !line.trim().is_empty());
        if let Some(panic) = lines.iter().position(|line| line.contains(PANIC)) {
            lines.truncate(panic + 1);
        }
        if lines.iter().any(|line| !is_vmm_log(line)) {
            lines.retain(|line| !is_vmm_log(line));
        }
        Self(lines)
    }

    /// The cause that it shows, as the beginning of a sentence; empty when it shows none.
    pub(super) fn cause(&self) -> String {
        let Some(cause) = diagnose(&self.0) else {
            return String::new();
        };
        let text = cause.to_string();
        let mut chars = text.chars();
        let first = chars.next().map(|c| c.to_ascii_uppercase());
        format!(
            "{}{}. ",
            first.map_or_else(String::new, String::from),
            chars.as_str()
        )
    }
}

impl fmt::Display for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(" (the guest's console is empty)");
        }
        f.write_str("; the guest's last console lines:")?;
        write_last(f, &self.0)
    }
}

/// Whether a line is of Firecracker's log, `2026-01-31T12:34:56.123456789 [id:thread] ...`, which
/// shares its output with the console until a log file is configured.
fn is_vmm_log(line: &str) -> bool {
    let mut words = line.split(' ');
    let time = words.next().unwrap_or_default().as_bytes();
    time.len() > 20
        && time[4] == b'-'
        && time[10] == b'T'
        && words.next().is_some_and(|word| word.starts_with('['))
}

/// The last lines of the VMM's log, as a suffix of an error text.
#[derive(Debug, Clone, Default)]
pub struct LastLog(Vec<String>);

impl LastLog {
    /// Keeps the lines that say something.
    #[must_use]
    pub fn new(mut lines: Vec<String>) -> Self {
        lines.retain(|line| !line.trim().is_empty());
        Self(lines)
    }

    /// The log, or nothing when `console` tells the cause.
    pub(super) fn unless(&self, console: &Console) -> Self {
        if diagnose(&console.0).is_some() {
            Self::default()
        } else {
            self.clone()
        }
    }
}

impl fmt::Display for LastLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str("; the VMM's last log lines:")?;
        write_last(f, &self.0)
    }
}

fn write_last(f: &mut fmt::Formatter<'_>, lines: &[String]) -> fmt::Result {
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        write!(f, "\n  {}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_what_the_guest_said() {
        let lines = [
            "2026-11-21T19:42:34.413091955 [vm:main] Listening on API socket (\"firecracker.sock\").",
            "crashing-agent: giving up",
            "[    2.5] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300",
            "[    2.6] RIP: 0033:0x7fcb7db15489",
        ]
        .map(str::to_owned);
        let only_log = Console::new(lines[..1].to_vec());
        assert!(only_log.to_string().contains("Listening"));
        assert_eq!(
            Console::new(lines.to_vec()).to_string(),
            format!(
                "; the guest's last console lines:\n  {}\n  {}",
                lines[1], lines[2]
            )
        );
    }
}
