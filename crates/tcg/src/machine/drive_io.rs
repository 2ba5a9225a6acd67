//! What the drives of a running guest have done, as QEMU counts it.

use serde_json::{Value, json};

use super::Machine;
use crate::qemu::{QemuError, drive_device_id};

/// QEMU's names of a drive's counters, and Firecracker's.
const COUNTERS: [(&str, &str); 5] = [
    ("rd_bytes", "read_bytes"),
    ("wr_bytes", "write_bytes"),
    ("rd_operations", "read_count"),
    ("wr_operations", "write_count"),
    ("flush_operations", "flush_count"),
];

/// Counters since the start, under Firecracker's names.
pub type DriveCounters = [(&'static str, u64); 5];

impl Machine {
    /// The counters of each drive, in the guest's order.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn drive_counters(&self) -> Result<Vec<DriveCounters>, QemuError> {
        let told = self.qmp.execute("query-blockstats", json!({})).await?;
        Ok((0..self.drives.len())
            .map(|index| counters(&told, &drive_device_id(index)))
            .collect())
    }
}

fn counters(told: &Value, device: &str) -> DriveCounters {
    let drive = told
        .as_array()
        .and_then(|drives| drives.iter().find(|drive| drive["qdev"] == device));
    COUNTERS.map(|(theirs, ours)| {
        let value = drive.and_then(|drive| drive["stats"][theirs].as_u64());
        (ours, value.unwrap_or(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_device() {
        let told = json!([
            { "qdev": "drive0", "stats": { "rd_bytes": 1 } },
            { "qdev": "drive1", "stats": { "rd_bytes": 512, "flush_operations": 2 } },
        ]);
        let counted = counters(&told, "drive1");
        assert_eq!(counted[0], ("read_bytes", 512));
        assert_eq!(counted[4], ("flush_count", 2));
        assert_eq!(counters(&told, "drive2")[0], ("read_bytes", 0));
    }
}
