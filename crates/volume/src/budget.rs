//! How much may be copied, and how much there is.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, fstat};

use crate::Refusal;
use crate::tree::{MAX_DEPTH, names, open_entry};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Everything takes up whole blocks, also in an image.
const BLOCK: u64 = 4 * KIB;
/// Entries after which measuring ends: only words for a refusal depend on it.
const MAX_MEASURED: u64 = 10_000;

/// What one file of `length` bytes, or one directory or link (`0`), takes of the budget.
pub(crate) fn cost(length: u64) -> u64 {
    length.max(1).div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Bytes that may still be copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    limit: u64,
    left: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Budget {
        Budget { limit, left: limit }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// What was taken.
    pub(crate) fn used(&self) -> u64 {
        self.limit - self.left
    }

    /// Takes `bytes` if there are so many left.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    pub(crate) fn refusal(&self, path: &Path, measure: &Measure) -> Refusal {
        let more = if measure.entries >= MAX_MEASURED {
            "more than "
        } else {
            ""
        };
        Refusal::TooLarge {
            path: path.to_owned(),
            size: format!(
                "{more}{} in {} entries",
                words(measure.bytes),
                measure.entries
            ),
            left: words(self.left),
            limit: words(self.limit),
        }
    }
}

/// The size of a tree.
#[derive(Debug, Default)]
pub(crate) struct Measure {
    bytes: u64,
    entries: u64,
}

impl Measure {
    /// Adds a file or directory with all that is below.
    pub(crate) fn add(&mut self, root: &OwnedFd) -> io::Result<()> {
        self.add_entry(root, 0)
    }

    fn add_entry(&mut self, entry: &OwnedFd, depth: usize) -> io::Result<()> {
        let stat = fstat(entry)?;
        self.entries += 1;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let length = u64::try_from(stat.st_size).unwrap_or(0);
                self.bytes = self.bytes.saturating_add(cost(length));
            }
            FileType::Directory if depth < MAX_DEPTH => {
                self.bytes = self.bytes.saturating_add(cost(0));
                for name in names(entry)? {
                    if self.entries >= MAX_MEASURED {
                        break;
                    }
                    let name = std::os::unix::ffi::OsStrExt::from_bytes(name.as_bytes());
                    if let Ok(entry) = open_entry(entry, name) {
                        self.add_entry(&entry, depth + 1)?;
                    }
                }
            }
            _ => self.bytes = self.bytes.saturating_add(cost(0)),
        }
        Ok(())
    }
}

/// A size for people.
fn words(bytes: u64) -> String {
    if bytes < MIB {
        format!("{} KiB", bytes.div_ceil(KIB))
    } else {
        let tenths = bytes.saturating_mul(10).div_ceil(MIB);
        format!("{}.{} MiB", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_not_exceeded() {
        let mut budget = Budget::new(8 * KIB);
        assert!(budget.take(cost(1)));
        assert!(!budget.take(cost(4097)));
        assert!(budget.take(cost(4096)));
        assert!(!budget.take(cost(0)));
        assert_eq!(budget.used(), 8 * KIB);
    }

    #[test]
    fn sizes_have_words() {
        assert_eq!(words(1), "1 KiB");
        assert_eq!(words(16 * MIB), "16.0 MiB");
        assert_eq!(words(MIB + MIB / 2), "1.5 MiB");
    }
}
