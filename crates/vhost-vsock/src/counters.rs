//! What has gone over a device, counted as Firecracker's metrics of the same names count it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Packets, bytes and connections since the device was started. Directions are the guest's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VsockCounters {
    /// Packets that the guest received for its connections.
    pub rx_packets: u64,
    /// Bytes of data in them.
    pub rx_bytes: u64,
    /// Packets that the guest sent on its connections.
    pub tx_packets: u64,
    /// Bytes of data in them.
    pub tx_bytes: u64,
    /// Connections that were made, by either side.
    pub conns_added: u64,
    /// Connections that are no more.
    pub conns_removed: u64,
}

/// The counters as the worker thread keeps them. Each is right by itself, all together only when it rests.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    rx_packets: AtomicU64,
    rx_bytes: AtomicU64,
    tx_packets: AtomicU64,
    tx_bytes: AtomicU64,
    conns_added: AtomicU64,
    conns_removed: AtomicU64,
}

impl Counters {
    /// A packet with so many bytes of data goes to the guest.
    pub(crate) fn received(&self, bytes: u32) {
        add(&self.rx_packets, 1);
        add(&self.rx_bytes, bytes.into());
    }

    /// A packet with so many bytes of data came from the guest.
    pub(crate) fn sent(&self, bytes: usize) {
        add(&self.tx_packets, 1);
        add(&self.tx_bytes, bytes as u64);
    }

    /// There is one more connection.
    pub(crate) fn connection_added(&self) {
        add(&self.conns_added, 1);
    }

    /// There is one connection less.
    pub(crate) fn connection_removed(&self) {
        add(&self.conns_removed, 1);
    }

    /// Their present values.
    pub(crate) fn read(&self) -> VsockCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        VsockCounters {
            rx_packets: read(&self.rx_packets),
            rx_bytes: read(&self.rx_bytes),
            tx_packets: read(&self.tx_packets),
            tx_bytes: read(&self.tx_bytes),
            conns_added: read(&self.conns_added),
            conns_removed: read(&self.conns_removed),
        }
    }
}

fn add(counter: &AtomicU64, growth: u64) {
    counter.fetch_add(growth, Ordering::Relaxed);
}
