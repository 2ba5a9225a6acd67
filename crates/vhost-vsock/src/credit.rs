//! Flow control of one connection: how much each side may send
//! (virtio 1.2, section 5.10.6.3).

use std::num::Wrapping;

use crate::header::{Header, op};

/// Both directions' counters. They wrap at 2^32 as the protocol's do, and the
/// peer's may hold any value at any time.
#[derive(Debug)]
pub(crate) struct Credit {
    /// Size of our buffer for data from the guest, in bytes.
    buf_alloc: u32,
    /// Bytes from the guest that have left that buffer.
    forwarded: Wrapping<u32>,
    /// The value of `forwarded` the guest was last told.
    told: Wrapping<u32>,
    /// Size of the guest's buffer.
    peer_buf_alloc: u32,
    /// Bytes from us that have left the guest's buffer, as it told us.
    peer_forwarded: Wrapping<u32>,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    /// The guest was asked for room since there was some.
    asked: bool,
    /// Its answer to that is still to come.
    answer_due: bool,
    /// The guest has told of room without being asked.
    volunteers: bool,
}

impl Credit {
    /// Counters of a new connection that buffers up to `buf_alloc` bytes.
    pub(crate) fn new(buf_alloc: u32) -> Credit {
        Credit {
            buf_alloc,
            forwarded: Wrapping(0),
            told: Wrapping(0),
            peer_buf_alloc: 0,
            peer_forwarded: Wrapping(0),
            sent: Wrapping(0),
            asked: false,
            answer_due: false,
            volunteers: false,
        }
    }

    /// Takes over what the guest says about its buffer in every packet.
    pub(crate) fn hear(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_forwarded = Wrapping(header.fwd_cnt);
        if header.op == op::CREDIT_UPDATE && !std::mem::take(&mut self.answer_due) {
            self.volunteers = true;
        }
        if self.peer_free() > 0 {
            self.asked = false;
        }
    }

    /// Whether to ask the guest for room when it has none.
    ///
    /// Once is enough until there is some: it answers at once, and again when there is more. One that is known to
    /// speak up by itself, as Linux does when it has read most of what it buffers, is not asked at all: its early
    /// answers would cut a stream into small pieces.
    pub(crate) fn may_ask(&self) -> bool {
        !self.asked && !self.volunteers
    }

    /// Notes that the guest is asked, if it should be. Whether it should.
    pub(crate) fn ask(&mut self) -> bool {
        let ask = self.may_ask();
        self.asked |= ask;
        self.answer_due |= ask;
        ask
    }

    /// Says what our buffer looks like in a packet to the guest.
    pub(crate) fn tell(&mut self, header: &mut Header) {
        self.told = self.forwarded;
        header.buf_alloc = self.buf_alloc;
        header.fwd_cnt = self.forwarded.0;
    }

    /// Bytes the guest has room for; 0 when its counters make no sense.
    pub(crate) fn peer_free(&self) -> u32 {
        let in_flight = self.sent - self.peer_forwarded;
        self.peer_buf_alloc.saturating_sub(in_flight.0)
    }

    /// Counts data sent to the guest.
    pub(crate) fn on_sent(&mut self, len: u32) {
        self.sent += len;
    }

    /// Counts data from the guest that needs our buffer no longer.
    pub(crate) fn on_forwarded(&mut self, len: usize) {
        // Never more than `buf_alloc` at a time, so nothing is cut off.
        self.forwarded += u32::try_from(len).unwrap_or(self.buf_alloc);
    }

    /// Whether the guest's idea of our buffer is so old that it needs a packet.
    ///
    /// Half of the buffer keeps a streaming guest from ever running dry while
    /// one packet, and with it an interrupt, pays for many.
    pub(crate) fn update_due(&self) -> bool {
        (self.forwarded - self.told).0 >= self.buf_alloc / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    #[test]
    fn sending_uses_up_the_peers_room_and_forwarding_returns_it() {
        let mut credit = Credit::new(1024);
        assert_eq!(credit.peer_free(), 0);
        credit.hear(&heard(100, 0));
        credit.on_sent(60);
        assert_eq!(credit.peer_free(), 40);
        credit.hear(&heard(100, 60));
        assert_eq!(credit.peer_free(), 100);
    }

    #[test]
    fn counters_wrap() {
        let mut credit = Credit::new(1024);
        credit.sent = Wrapping(u32::MAX - 9);
        credit.hear(&heard(100, u32::MAX - 9));
        credit.on_sent(50);
        assert_eq!(credit.peer_free(), 50);
        credit.hear(&heard(100, 40));
        assert_eq!(credit.peer_free(), 100);
    }

    #[test]
    fn nonsense_from_the_peer_means_no_room() {
        let mut credit = Credit::new(1024);
        credit.hear(&heard(100, 5));
        assert_eq!(credit.peer_free(), 0);
        credit.hear(&heard(0, u32::MAX));
        assert_eq!(credit.peer_free(), 0);
    }

    #[test]
    fn a_guest_that_speaks_up_is_asked_no_more() {
        let update = |fwd_cnt| Header {
            op: op::CREDIT_UPDATE,
            ..heard(100, fwd_cnt)
        };
        let mut credit = Credit::new(1024);
        credit.hear(&heard(100, 0));
        credit.on_sent(100);
        assert!(credit.ask());
        assert!(!credit.ask(), "asked twice");
        // The answer, without room: the next word is the guest's.
        credit.hear(&update(0));
        assert!(!credit.ask());
        credit.hear(&heard(100, 10));
        credit.on_sent(10);
        assert!(credit.ask(), "only a credit update says something");
        credit.hear(&update(20));
        credit.hear(&update(100));
        credit.on_sent(90);
        assert_eq!(credit.peer_free(), 0);
        assert!(!credit.ask());
    }

    #[test]
    fn an_update_is_due_after_half_of_the_buffer() {
        let mut credit = Credit::new(1024);
        credit.on_forwarded(511);
        assert!(!credit.update_due());
        credit.on_forwarded(1);
        assert!(credit.update_due());
        let mut header = Header::default();
        credit.tell(&mut header);
        assert_eq!((header.buf_alloc, header.fwd_cnt), (1024, 512));
        assert!(!credit.update_due());
    }
}
