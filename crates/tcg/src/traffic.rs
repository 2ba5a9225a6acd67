//! What has gone over a tap device, as the kernel counts it.

use std::fs;
use std::io;

/// The kernel's table of network devices.
const TABLE: &str = "/proc/net/dev";

/// Bytes and frames since the device was made, as the guest sees directions: what the host's end has sent, the guest
/// has received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Traffic {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
}

impl Traffic {
    /// Reads the counters of the device `name`; none if the kernel does not list it.
    ///
    /// # Errors
    /// The table cannot be read, as in a jail without `/proc`.
    pub fn read(name: &str) -> io::Result<Option<Self>> {
        Ok(find(&fs::read_to_string(TABLE)?, name))
    }

    /// What has come on top of `earlier`, under Firecracker's names.
    #[must_use]
    pub fn since(self, earlier: Self) -> [(&'static str, u64); 4] {
        [
            (
                "rx_bytes_count",
                self.rx_bytes.saturating_sub(earlier.rx_bytes),
            ),
            (
                "rx_packets_count",
                self.rx_packets.saturating_sub(earlier.rx_packets),
            ),
            (
                "tx_bytes_count",
                self.tx_bytes.saturating_sub(earlier.tx_bytes),
            ),
            (
                "tx_packets_count",
                self.tx_packets.saturating_sub(earlier.tx_packets),
            ),
        ]
    }
}

/// Format: a line for each device, its name and a colon, then eight counters of what it has received and eight of what
/// it has sent, each time bytes and packets first (proc_pid_net(5)).
fn find(table: &str, name: &str) -> Option<Traffic> {
    let counters = table.lines().find_map(|line| {
        let (device, counters) = line.split_once(':')?;
        (device.trim() == name).then_some(counters)
    })?;
    let mut counters = counters.split_ascii_whitespace().map(str::parse);
    let mut nth = |skip: usize| counters.nth(skip)?.ok();
    Some(Traffic {
        tx_bytes: nth(0)?,
        tx_packets: nth(0)?,
        rx_bytes: nth(6)?,
        rx_packets: nth(0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    3245      30    0    0    0     0          0         0     3245      30    0    0    0     0       0          0
  tap1:     642       9    1    2    3     4          5         6      586       7    0    0    0     0       0          0
";

    #[test]
    fn directions_are_the_guests() {
        let traffic = find(SAMPLE, "tap1").unwrap();
        let expected = Traffic {
            rx_bytes: 586,
            rx_packets: 7,
            tx_bytes: 642,
            tx_packets: 9,
        };
        assert_eq!(traffic, expected);
        assert_eq!(find(SAMPLE, "tap"), None);
        assert_eq!(find("  tap1: 1 2", "tap1"), None);
        let earlier = Traffic {
            tx_bytes: 600,
            ..Traffic::default()
        };
        assert_eq!(traffic.since(earlier)[2], ("tx_bytes_count", 42));
    }

    #[test]
    fn the_kernels_own_table() {
        assert!(Traffic::read("lo").unwrap().is_some());
    }
}
