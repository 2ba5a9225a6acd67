//! The balloon: memory that the guest gives back.

use serde::{Deserialize, Serialize};

/// `/balloon`. `PUT` before boot only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// Target size in MiB.
    pub amount_mib: u32,
    /// Whether the guest gets memory back instead of running out of it.
    pub deflate_on_oom: bool,
    /// Seconds between statistics; 0 switches them off. Default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats_polling_interval_s: Option<u16>,
}

/// `PATCH /balloon`, of a booted VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonUpdate {
    /// New target size in MiB.
    pub amount_mib: u32,
}

/// `PATCH /balloon/statistics`, of a booted VM whose statistics are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonStatisticsUpdate {
    /// New number of seconds between statistics, not 0: they cannot be switched on or off after boot.
    pub stats_polling_interval_s: u16,
}

/// `GET /balloon/statistics`. What is `None` was not reported by the guest's driver. Sizes without a unit in
/// their name are in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BalloonStatistics {
    /// Target size in pages of 4 KiB.
    pub target_pages: u64,
    /// Present size in pages of 4 KiB.
    pub actual_pages: u64,
    /// Target size in MiB.
    pub target_mib: u64,
    /// Present size in MiB.
    pub actual_mib: u64,
    /// Memory swapped in.
    pub swap_in: Option<u64>,
    /// Memory swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Memory used for nothing.
    pub free_memory: Option<u64>,
    /// The guest's memory.
    pub total_memory: Option<u64>,
    /// Memory that programs could get without swapping.
    pub available_memory: Option<u64>,
    /// Memory that could be given back at once: caches of files.
    pub disk_caches: Option<u64>,
    /// Successful allocations of huge pages.
    pub hugetlb_allocations: Option<u64>,
    /// Failed allocations of huge pages.
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait for memory to be freed.
    pub alloc_stall: Option<u64>,
    /// Memory looked at for freeing, in the background.
    pub async_scan: Option<u64>,
    /// Memory looked at for freeing, by who needed it.
    pub direct_scan: Option<u64>,
    /// Memory freed in the background.
    pub async_reclaim: Option<u64>,
    /// Memory freed by who needed it.
    pub direct_reclaim: Option<u64>,
}
