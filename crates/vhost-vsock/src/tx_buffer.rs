//! Data from the guest that its host socket would not take yet.

use std::collections::VecDeque;

/// A bounded queue of bytes that owns memory only while it holds some.
#[derive(Debug)]
pub(crate) struct TxBuffer {
    bytes: VecDeque<u8>,
    capacity: usize,
}

impl TxBuffer {
    /// An empty buffer for up to `capacity` bytes.
    pub(crate) fn new(capacity: usize) -> TxBuffer {
        TxBuffer {
            bytes: VecDeque::new(),
            capacity,
        }
    }

    /// Bytes that still fit.
    pub(crate) fn free(&self) -> usize {
        self.capacity - self.bytes.len()
    }

    /// Whether nothing is buffered.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends `data`, which the caller has compared with [`TxBuffer::free`];
    /// what does not fit is refused as a whole.
    pub(crate) fn push(&mut self, data: &[u8]) -> bool {
        if data.len() > self.free() {
            return false;
        }
        self.bytes.extend(data);
        true
    }

    /// The oldest bytes that lie in one piece.
    pub(crate) fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// Drops the `len` oldest bytes.
    pub(crate) fn consume(&mut self, len: usize) {
        self.bytes.drain(..len);
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
    }

    /// Drops everything and says how much that was.
    pub(crate) fn clear(&mut self) -> usize {
        std::mem::take(&mut self.bytes).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_the_order_they_came_across_the_wrap() {
        let mut buffer = TxBuffer::new(64);
        let mut expected = 0u8;
        let mut next = 0u8;
        for _ in 0..100 {
            let chunk: Vec<u8> = (0..23).map(|i| next.wrapping_add(i)).collect();
            if buffer.push(&chunk) {
                next = next.wrapping_add(23);
            }
            let len = buffer.front().len().min(17);
            for byte in &buffer.front()[..len] {
                assert_eq!(*byte, expected);
                expected = expected.wrapping_add(1);
            }
            buffer.consume(len);
        }
    }

    #[test]
    fn it_never_holds_more_than_its_capacity() {
        let mut buffer = TxBuffer::new(10);
        assert!(buffer.push(&[0; 8]));
        assert!(!buffer.push(&[0; 3]));
        assert_eq!(buffer.free(), 2);
        assert_eq!(buffer.clear(), 8);
        assert!(buffer.is_empty());
    }
}
