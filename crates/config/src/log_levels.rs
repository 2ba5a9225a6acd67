//! `log_levels`: what is logged, and how much of it.

/// A level, from the most to the least verbose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Everything.
    Debug,
    /// Normal events.
    Info,
    /// Unusual events.
    Warning,
    /// Failures.
    Error,
}

impl Level {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "debug" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "warning" => Some(Self::Warning),
            "error" => Some(Self::Error),
            _ => None,
        }
    }

    /// The level's name in Firecracker's API (`PUT /logger`).
    #[must_use]
    pub fn as_firecracker(self) -> &'static str {
        match self {
            Self::Debug => "Debug",
            Self::Info => "Info",
            Self::Warning => "Warning",
            Self::Error => "Error",
        }
    }
}

/// The levels that `log_levels` sets. Nothing is set by default.
///
/// Entries are `debug`, `info`, `warning` or `error` for everything, the same after `firecracker:`,
/// `firecracker-go-sdk:` or `firecracker-containerd:` for one part, and `firecracker:output`. Each part, and
/// everything, can be set once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogLevels {
    all: Option<Level>,
    firecracker: Option<Level>,
    client: Option<Level>,
    runtime: Option<Level>,
    output: bool,
}

impl LogLevels {
    /// The level of the VMM's own log; `None` leaves the VMM's default.
    #[must_use]
    pub fn firecracker(&self) -> Option<Level> {
        self.firecracker.or(self.all)
    }

    /// The level of the client of the VMM's API (`firecracker-go-sdk:`); `None` leaves the default.
    #[must_use]
    pub fn client(&self) -> Option<Level> {
        self.client.or(self.all)
    }

    /// The level of the runtime itself (`firecracker-containerd:`); `None` leaves the default.
    /// `shim_debug`, containerd's wish for debug logs, beats all but the level set for this part.
    #[must_use]
    pub fn runtime(&self, shim_debug: bool) -> Option<Level> {
        let debug = shim_debug.then_some(Level::Debug);
        self.runtime.or(debug).or(self.all)
    }

    /// Whether the VMM's output, with the guest's console in it, is logged.
    #[must_use]
    pub fn vmm_output(&self) -> bool {
        self.output || self.all == Some(Level::Debug)
    }

    pub(crate) fn parse(entries: Vec<String>) -> Result<Self, String> {
        let mut levels = Self::default();
        for entry in &entries {
            levels.add(entry.trim())?;
        }
        Ok(levels)
    }

    fn add(&mut self, entry: &str) -> Result<(), String> {
        if entry == "firecracker:output" {
            self.output = true;
            return Ok(());
        }
        let (part, name) = entry.split_once(':').unwrap_or(("", entry));
        let slot = match part {
            "" if !entry.starts_with(':') => Some(&mut self.all),
            "firecracker" => Some(&mut self.firecracker),
            "firecracker-go-sdk" => Some(&mut self.client),
            "firecracker-containerd" => Some(&mut self.runtime),
            _ => None,
        };
        let (Some(slot), Some(level)) = (slot, Level::parse(name)) else {
            return Err(format!("log level {entry:?} is an invalid log level"));
        };
        if slot.is_some() {
            return Err(format!(
                "log level {entry:?} comes after another one for the same part"
            ));
        }
        *slot = Some(level);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(entries: &[&str]) -> Result<LogLevels, String> {
        LogLevels::parse(entries.iter().map(|&entry| entry.to_owned()).collect())
    }

    #[test]
    fn a_parts_own_level_beats_the_general_one() {
        let levels = parse(&[" info ", "firecracker:error", "firecracker:output"]).expect("valid");
        assert_eq!(levels.firecracker(), Some(Level::Error));
        assert_eq!(levels.client(), Some(Level::Info));
        assert_eq!(levels.runtime(false), Some(Level::Info));
        assert_eq!(levels.runtime(true), Some(Level::Debug));
        assert!(levels.vmm_output());
        let levels = parse(&["firecracker-containerd:warning"]).expect("valid");
        assert_eq!(levels.runtime(true), Some(Level::Warning));
        assert_eq!(levels.firecracker(), None);
        assert!(!levels.vmm_output());
        assert!(parse(&["debug"]).expect("valid").vmm_output());
    }

    #[test]
    fn mistakes_are_refused() {
        for entries in [
            &["verbose"][..],
            &[""],
            &[":debug"],
            &["debug", "info"],
            &["firecracker:output2"],
            &["firecracker-go-sdk:debug", "firecracker-go-sdk:debug"],
            &["other:debug"],
        ] {
            assert!(parse(entries).is_err(), "{entries:?}");
        }
    }
}
