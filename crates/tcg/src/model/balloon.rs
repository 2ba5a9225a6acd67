use serde::{Deserialize, Serialize};

/// `PUT /balloon`, and the answer to `GET`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {
    /// Target size in MiB: memory that the guest is to give back.
    pub amount_mib: u32,
    /// Whether the guest may take memory back instead of running out of it.
    pub deflate_on_oom: bool,
    /// Seconds between statistics; 0 means that there are none.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Not offered.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Whether the guest tells which of its pages are free, so that the host can use them.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// `PATCH /balloon`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// New target size in MiB.
    pub amount_mib: u32,
}

/// `PATCH /balloon/statistics`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatisticsUpdate {
    /// New number of seconds between statistics.
    pub stats_polling_interval_s: u16,
}

/// Answer to `GET /balloon/statistics`. What the guest has not told is left out; sizes without a unit in their
/// name are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct BalloonStatistics {
    /// Target size in pages of 4 KiB.
    pub target_pages: u64,
    /// Present size in pages of 4 KiB.
    pub actual_pages: u64,
    pub target_mib: u64,
    pub actual_mib: u64,
    /// What the guest's driver counts, under Firecracker's names.
    #[serde(flatten)]
    pub guest: std::collections::BTreeMap<&'static str, u64>,
}
