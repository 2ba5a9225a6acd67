//! Counters, written as one JSON object per line to the target of `PUT /metrics`: every 60 seconds, at
//! `FlushMetrics` and at the end. Groups and names are Firecracker's; each value is the growth since the line
//! before. Only what really is counted appears.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::logger::open_nonblocking;
use crate::model::MetricsConfig;

/// Time between two lines.
pub const PERIOD: Duration = Duration::from_secs(60);

static METRICS: Mutex<Metrics> = Mutex::new(Metrics {
    target: None,
    groups: BTreeMap::new(),
    totals: BTreeMap::new(),
});

struct Metrics {
    target: Option<File>,
    groups: Groups,
    /// What was told of counters that others keep.
    totals: Groups,
}

type Groups = BTreeMap<Cow<'static, str>, BTreeMap<&'static str, u64>>;

/// Why a target is refused.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// It can be set once only.
    #[error("Metrics system was already initialized.")]
    AlreadyInitialized,
    /// It cannot be opened.
    #[error("{0}")]
    Open(#[source] io::Error),
}

/// Adds one to a counter.
pub fn add(group: impl Into<Cow<'static, str>>, name: &'static str) {
    add_many(group, name, 1);
}

/// Adds to a counter.
pub fn add_many(group: impl Into<Cow<'static, str>>, name: &'static str, growth: u64) {
    let mut metrics = METRICS.lock().unwrap_or_else(PoisonError::into_inner);
    *counter(&mut metrics.groups, group.into(), name) += growth;
}

/// Takes over the present value of a counter that others keep and that never shrinks.
pub fn set_total(group: impl Into<Cow<'static, str>>, name: &'static str, total: u64) {
    let mut metrics = METRICS.lock().unwrap_or_else(PoisonError::into_inner);
    let group = group.into();
    let before = counter(&mut metrics.totals, group.clone(), name);
    let growth = total.saturating_sub(*before);
    *before = total;
    *counter(&mut metrics.groups, group, name) += growth;
}

fn counter<'a>(
    groups: &'a mut Groups,
    group: Cow<'static, str>,
    name: &'static str,
) -> &'a mut u64 {
    groups.entry(group).or_default().entry(name).or_default()
}

/// Sets the target.
///
/// # Errors
/// There is one already, or it cannot be opened.
pub fn configure(config: &MetricsConfig) -> Result<(), MetricsError> {
    let mut metrics = METRICS.lock().unwrap_or_else(PoisonError::into_inner);
    if metrics.target.is_some() {
        return Err(MetricsError::AlreadyInitialized);
    }
    metrics.target = Some(open_nonblocking(&config.metrics_path).map_err(MetricsError::Open)?);
    Ok(())
}

/// Writes a line, if there is a target.
///
/// # Errors
/// Writing failed: a full pipe, or a full disk. The growth is then in no line.
pub fn flush() -> io::Result<()> {
    let mut metrics = METRICS.lock().unwrap_or_else(PoisonError::into_inner);
    let Metrics { target, groups, .. } = &mut *metrics;
    let Some(target) = target else { return Ok(()) };
    let line = format!("{}\n", take(groups));
    target.write_all(line.as_bytes()).inspect_err(|_| {
        *counter(groups, "logger".into(), "missed_metrics_count") += 1;
    })
}

/// The counters as a JSON object; sets them to zero.
fn take(groups: &mut Groups) -> Value {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut line =
        json!({ "utc_timestamp_ms": u64::try_from(now.as_millis()).unwrap_or(u64::MAX) });
    for (group, counters) in groups {
        line[group.as_ref()] = json!(counters);
        counters.values_mut().for_each(|value| *value = 0);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_once() {
        let mut groups = BTreeMap::new();
        groups.insert(
            "put_api_requests".into(),
            BTreeMap::from([("drive_count", 3)]),
        );
        let line = take(&mut groups);
        assert_eq!(line["put_api_requests"]["drive_count"], 3);
        assert!(line["utc_timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000);
        assert_eq!(take(&mut groups)["put_api_requests"]["drive_count"], 0);
    }
}
