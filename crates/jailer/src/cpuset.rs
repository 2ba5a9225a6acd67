//! The lists of processors and memory nodes that a jail's `CPUs` and `Mems` take: built, and checked.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Longest list in bytes: more than any host has to tell of.
const LONGEST: usize = 64 << 10;

/// A list of processors or memory nodes, as the kernel reads it: numbers and ranges between commas, such as `0,2-4`.
/// A range may be followed by a pattern (`0-7:1/2`: the first of every two), `N` is the host's last number, and `all`
/// is everything ("bitmap_parselist" in the kernel's documentation). Empty for no restriction.
///
/// Whether the host has what it names is for the kernel to say.
///
/// ```
/// let list: fc_jailer::CpusetList = "0,2-4".parse().unwrap();
/// assert_eq!(list.as_str(), "0,2-4");
/// assert!("first".parse::<fc_jailer::CpusetList>().is_err());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpusetList(String);

/// A text that is no list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpusetListError {
    /// A part of it is no number and no range.
    #[error("{0:?} is neither a number nor a range: a list is like \"0,2-4\"")]
    Part(String),
    /// It is too long.
    #[error("a list of {0} bytes is longer than any host needs")]
    Long(usize),
}

impl CpusetList {
    /// The list, as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CpusetList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CpusetList {
    type Err = CpusetListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > LONGEST {
            return Err(CpusetListError::Long(text.len()));
        }
        let separator = |c: char| c == ',' || c.is_ascii_whitespace();
        let mut parts = text.split(separator).filter(|part| !part.is_empty());
        match parts.find(|part| !is_region(part)) {
            Some(part) => Err(CpusetListError::Part(part.to_owned())),
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// Whether the kernel takes `part` for what a list is made of.
fn is_region(part: &str) -> bool {
    let (range, pattern) = match part.split_once(':') {
        Some((range, pattern)) => (range, Some(pattern)),
        None => (part, None),
    };
    let is_range = match range.split_once('-') {
        Some((first, last)) => ordered(first, last),
        // A pattern follows a range only.
        None => {
            range.eq_ignore_ascii_case("all") || (number(range, 0).is_some() && pattern.is_none())
        }
    };
    let is_pattern = pattern.is_none_or(|pattern| {
        let numbers = pattern.split_once('/');
        numbers.is_some_and(|(used, group)| ordered(used, group) && number(group, 1) != Some(0))
    });
    is_range && is_pattern
}

/// Whether both are numbers, and the first is not known to be larger.
fn ordered(first: &str, last: &str) -> bool {
    match (number(first, 0), number(last, u32::MAX)) {
        (Some(first), Some(last)) => first <= last,
        _ => false,
    }
}

/// A decimal number; `host_s_last` for `N`.
fn number(text: &str, host_s_last: u32) -> Option<u32> {
    if text == "N" {
        return Some(host_s_last);
    }
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Collects processors and memory nodes. Single ones come before ranges, each in the order of their addition;
/// nothing is checked against the host.
///
/// ```
/// let cpuset = fc_jailer::CpusetBuilder::new().cpu(0).cpu_range(2..=4).cpu(1).mem(0);
/// assert_eq!(cpuset.cpus(), "0,1,2-4");
/// assert_eq!(cpuset.mems(), "0");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpusetBuilder {
    cpus: List,
    mems: List,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct List {
    singles: Vec<u32>,
    ranges: Vec<RangeInclusive<u32>>,
}

impl CpusetBuilder {
    /// Nothing yet: both lists are empty, which means no restriction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a processor.
    #[must_use]
    pub fn cpu(mut self, cpu: u32) -> Self {
        self.cpus.singles.push(cpu);
        self
    }

    /// Adds consecutive processors.
    #[must_use]
    pub fn cpu_range(mut self, cpus: RangeInclusive<u32>) -> Self {
        self.cpus.ranges.push(cpus);
        self
    }

    /// Adds a memory node.
    #[must_use]
    pub fn mem(mut self, node: u32) -> Self {
        self.mems.singles.push(node);
        self
    }

    /// Adds consecutive memory nodes.
    #[must_use]
    pub fn mem_range(mut self, nodes: RangeInclusive<u32>) -> Self {
        self.mems.ranges.push(nodes);
        self
    }

    /// The processors, for `CPUs`.
    #[must_use]
    pub fn cpus(&self) -> String {
        self.cpus.text()
    }

    /// The memory nodes, for `Mems`.
    #[must_use]
    pub fn mems(&self) -> String {
        self.mems.text()
    }
}

impl List {
    fn text(&self) -> String {
        let singles = self.singles.iter().map(|n| n.to_string());
        let ranges = self.ranges.iter();
        let ranges = ranges.map(|range| format!("{}-{}", range.start(), range.end()));
        singles.chain(ranges).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singles_come_first() {
        let cpuset = CpusetBuilder::new()
            .cpu_range(4..=7)
            .cpu(9)
            .cpu_range(0..=1)
            .cpu(3)
            .mem_range(0..=1);
        assert_eq!(cpuset.cpus(), "9,3,4-7,0-1");
        assert_eq!(cpuset.mems(), "0-1");
        assert_eq!(CpusetBuilder::new().cpus(), "");
        assert!(cpuset.cpus().parse::<CpusetList>().is_ok());
    }

    #[test]
    fn lists_are_what_the_kernel_reads() {
        for text in [
            "",
            "0",
            "0,2-4",
            "3, 1",
            "0-0",
            "all",
            "ALL",
            "N",
            "0-N",
            "2-5,",
            "0-1023:2/256",
            "all:1/2",
            "0-N:0/1",
            "N-N",
        ] {
            assert_eq!(text.parse::<CpusetList>().unwrap().as_str(), text);
        }
        for text in [
            "first",
            "-",
            "-1",
            "1-",
            "+1",
            "4-2",
            "1;2",
            "0x1",
            "all-3",
            "n",
            "1:1/2",
            "0-7:1",
            "0-7:3/2",
            "0-7:1/0",
            "4294967296",
            "0-1-2",
            "../x",
            "0\u{0}",
        ] {
            let error = text.parse::<CpusetList>().unwrap_err();
            assert_eq!(error, CpusetListError::Part(text.to_owned()));
        }
        let part = "0,2-4,x-9".parse::<CpusetList>().unwrap_err().to_string();
        assert!(part.contains("\"x-9\""), "{part}");
        let long = "0,".repeat(LONGEST);
        assert_eq!(
            long.parse::<CpusetList>(),
            Err(CpusetListError::Long(2 * LONGEST))
        );
    }
}
