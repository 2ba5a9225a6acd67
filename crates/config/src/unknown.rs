//! Keys that nobody reads.

use std::fmt;

use crate::Place;

/// A key of the file that has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Where its value is.
    pub place: Place,
    /// The key, with the keys above it.
    pub key: String,
    /// What to use instead, a sentence.
    pub hint: Option<String>,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, key, hint } = self;
        write!(f, "Configuration {place}: unknown key {key} is ignored")?;
        match hint {
            Some(hint) => write!(f, ". {hint}"),
            None => Ok(()),
        }
    }
}

/// Keys that the original's documentation names although its code no longer reads them.
const DEAD: [(&str, &str); 6] = [
    ("ht_enabled", "Use smt_enabled"),
    (
        "log_fifo",
        "Each VM has its own: see LogFifoPath of CreateVM",
    ),
    (
        "metrics_fifo",
        "Each VM has its own: see MetricsFifoPath of CreateVM",
    ),
    ("debug", "Use log_levels: [\"debug\"]"),
    ("log_level", "Use log_levels, a list"),
    ("additional_drives", "Use DriveMounts of CreateVM"),
];

/// What to use instead of `key`, among `known` keys.
pub(crate) fn hint(key: &str, known: &[&str]) -> Option<String> {
    let lower = key.to_ascii_lowercase();
    if let Some((_, hint)) = DEAD.iter().find(|(dead, _)| *dead == lower) {
        return Some((*hint).to_owned());
    }
    let distance = |name: &str| edits(&lower, &name.to_ascii_lowercase());
    let closest = known.iter().min_by_key(|name| distance(name))?;
    (distance(closest) <= 3 && distance(closest) * 2 < lower.len())
        .then(|| format!("Did you mean {closest}?"))
}

/// Insertions, removals and replacements of one byte that turn `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_the_key_that_was_meant() {
        let known = ["kernel_image_path", "kernel_args", "root_drive"];
        assert_eq!(
            hint("kernel_image_pth", &known).as_deref(),
            Some("Did you mean kernel_image_path?")
        );
        assert_eq!(
            hint("Root-Drive", &known).as_deref(),
            Some("Did you mean root_drive?")
        );
        assert_eq!(
            hint("HT_enabled", &known).as_deref(),
            Some("Use smt_enabled")
        );
        assert_eq!(hint("colour", &known), None);
        assert_eq!(edits("kitten", "sitting"), 3);
    }
}
