//! The balloon of a running guest. QEMU counts the memory that the guest keeps; Firecracker counts what it gives.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Machine;
use crate::model::BalloonStatistics;
use crate::qemu::{BALLOON_ID, QemuError, Qmp};

const MIB: u64 = 1024 * 1024;

/// The balloon's unit.
const PAGE: u64 = 4096;

/// QEMU's names of the guest's counters, and Firecracker's.
const COUNTERS: [(&str, &str); 16] = [
    ("stat-swap-in", "swap_in"),
    ("stat-swap-out", "swap_out"),
    ("stat-major-faults", "major_faults"),
    ("stat-minor-faults", "minor_faults"),
    ("stat-free-memory", "free_memory"),
    ("stat-total-memory", "total_memory"),
    ("stat-available-memory", "available_memory"),
    ("stat-disk-caches", "disk_caches"),
    ("stat-htlb-pgalloc", "hugetlb_allocations"),
    ("stat-htlb-pgfail", "hugetlb_failures"),
    ("stat-oom-kills", "oom_kill"),
    ("stat-alloc-stalls", "alloc_stall"),
    ("stat-async-scans", "async_scan"),
    ("stat-direct-scans", "direct_scan"),
    ("stat-async-reclaims", "async_reclaim"),
    ("stat-direct-reclaims", "direct_reclaim"),
];

impl Machine {
    /// Sets how much memory the guest is to give, in MiB. It gives it in its own time.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn set_balloon(&self, memory_mib: usize, amount_mib: u32) -> Result<(), QemuError> {
        set_target(&self.qmp, memory_mib, amount_mib).await
    }

    /// Sets the seconds between statistics.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn set_statistics_interval(&self, seconds: u16) -> Result<(), QemuError> {
        set_interval(&self.qmp, seconds).await
    }

    /// The statistics that the guest sent last, for a guest of `memory_mib` that is to give `amount_mib`.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn balloon_statistics(
        &self,
        memory_mib: usize,
        amount_mib: u32,
    ) -> Result<BalloonStatistics, QemuError> {
        let kept = self.qmp.execute("query-balloon", json!({})).await?;
        let told = self
            .qmp
            .execute(
                "qom-get",
                json!({ "path": object(), "property": "guest-stats" }),
            )
            .await?;
        Ok(statistics(memory_mib, amount_mib, &kept, &told))
    }
}

/// Sets the balloon's target; works before the guest runs too.
pub(super) async fn set_target(
    qmp: &Qmp,
    memory_mib: usize,
    amount_mib: u32,
) -> Result<(), QemuError> {
    let memory = memory_mib as u64 * MIB;
    // QEMU takes nothing for a guest that would keep nothing.
    let keep = memory.saturating_sub(u64::from(amount_mib) * MIB).max(PAGE);
    qmp.execute("balloon", json!({ "value": keep }))
        .await
        .map(drop)
}

/// Starts asking the guest for statistics.
pub(super) async fn set_interval(qmp: &Qmp, seconds: u16) -> Result<(), QemuError> {
    let property = "guest-stats-polling-interval";
    let arguments = json!({ "path": object(), "property": property, "value": seconds });
    qmp.execute("qom-set", arguments).await.map(drop)
}

/// Counts changes of the balloon's size, which QEMU tells as the memory that the guest keeps.
#[derive(Debug)]
pub(super) struct Changes {
    kept: u64,
}

impl Changes {
    /// For a guest of so many MiB, whose balloon is empty.
    pub(super) fn new(memory_mib: usize) -> Self {
        Self {
            kept: memory_mib as u64 * MIB,
        }
    }

    /// The metric that the event `BALLOON_CHANGE` counts for; none if nothing changed.
    pub(super) fn metric(&mut self, data: &Value) -> Option<&'static str> {
        let kept = data["actual"].as_u64()?;
        let before = std::mem::replace(&mut self.kept, kept);
        match kept.cmp(&before) {
            Ordering::Less => Some("inflate_count"),
            Ordering::Greater => Some("deflate_count"),
            Ordering::Equal => None,
        }
    }
}

fn object() -> String {
    format!("/machine/peripheral/{BALLOON_ID}")
}

fn statistics(memory_mib: usize, amount_mib: u32, kept: &Value, told: &Value) -> BalloonStatistics {
    let memory = memory_mib as u64 * MIB;
    let given = memory.saturating_sub(kept["actual"].as_u64().unwrap_or(memory));
    let amount_mib = u64::from(amount_mib);
    let guest: BTreeMap<_, _> = COUNTERS
        .iter()
        .filter_map(|&(theirs, ours)| {
            // All ones means that the guest has not told.
            let value = told["stats"][theirs]
                .as_u64()
                .filter(|&value| value != u64::MAX)?;
            Some((ours, value))
        })
        .collect();
    BalloonStatistics {
        target_pages: amount_mib * (MIB / PAGE),
        actual_pages: given / PAGE,
        target_mib: amount_mib,
        actual_mib: given / MIB,
        guest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firecrackers_names_and_units() {
        let kept = json!({ "actual": 96 * MIB });
        let told = json!({ "stats": { "stat-free-memory": 5, "stat-swap-in": u64::MAX, "other": 1 }, "last-update": 9 });
        let statistics = statistics(128, 48, &kept, &told);
        assert_eq!(
            serde_json::to_value(statistics).unwrap(),
            json!({
                "target_pages": 48 * 256, "actual_pages": 32 * 256, "target_mib": 48, "actual_mib": 32, "free_memory": 5,
            })
        );
    }

    #[test]
    fn changes_have_directions() {
        let mut changes = Changes::new(128);
        let mut metric = |mib: u64| changes.metric(&json!({ "actual": mib * MIB }));
        assert_eq!(metric(100), Some("inflate_count"));
        assert_eq!(metric(100), None);
        assert_eq!(metric(128), Some("deflate_count"));
    }
}
