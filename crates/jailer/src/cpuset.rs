//! Builds the lists of processors and memory nodes that a jail's `CPUs` and `Mems` take (cpuset(7), "List format").

use std::ops::RangeInclusive;

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
    }
}
