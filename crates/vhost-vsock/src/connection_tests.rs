//! The state machine against real Unix sockets and an imagined guest.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

const BUFFER: u32 = 256 * 1024;

/// A connection with the host program's end of it.
struct Test {
    connection: Connection,
    host: UnixStream,
    /// What the guest has received.
    data: Vec<u8>,
}

impl Test {
    /// The guest has connected, with room for `peer_room` bytes, and been answered.
    fn established(peer_room: u32) -> Test {
        let (host, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        host.set_nonblocking(true).unwrap();
        let request = Header {
            buf_alloc: peer_room,
            ..control(op::REQUEST)
        };
        let mut test = Test {
            connection: Connection::from_guest(&request, ours, BUFFER),
            host,
            data: Vec::new(),
        };
        let response = test.packet().unwrap();
        assert_eq!(response.op, op::RESPONSE);
        assert_eq!((response.buf_alloc, response.fwd_cnt), (BUFFER, 0));
        test
    }

    /// A host program asks for a connection.
    fn requesting() -> Test {
        let mut test = Test::established(0);
        let ours = test.connection.stream.try_clone().unwrap();
        test.connection = Connection::from_host(1 << 30, ours, BUFFER);
        test
    }

    fn packet(&mut self) -> Option<Header> {
        let mut data = [0; 4096];
        let header = self.connection.next_packet(&mut data)?;
        self.data.extend(&data[..header.len as usize]);
        Some(header)
    }

    fn op(&mut self) -> Option<u16> {
        self.packet().map(|header| header.op)
    }

    fn guest_sends(&mut self, op: u16) {
        self.guest_sends_with(Header {
            buf_alloc: BUFFER,
            ..control(op)
        });
    }

    fn guest_sends_with(&mut self, header: Header) {
        self.connection.on_packet(&header, &[]);
    }

    fn guest_shuts(&mut self, flags: u32) {
        self.guest_sends_with(Header {
            flags,
            buf_alloc: BUFFER,
            ..control(op::SHUTDOWN)
        });
    }

    fn guest_writes(&mut self, data: &[u8]) {
        let header = Header {
            len: u32::try_from(data.len()).unwrap(),
            buf_alloc: BUFFER,
            ..control(op::RW)
        };
        self.connection.on_packet(&header, data);
    }

    fn readable(&mut self) {
        self.connection.on_host_event(HostEvent {
            readable: true,
            ..HostEvent::default()
        });
    }

    fn hung_up(&mut self) {
        self.connection.on_host_event(HostEvent {
            readable: true,
            hung_up: true,
            ..HostEvent::default()
        });
    }

    fn writable(&mut self) {
        self.connection.on_host_event(HostEvent {
            writable: true,
            ..HostEvent::default()
        });
    }

    /// Takes what the host program can read now.
    fn host_reads(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // Ends with WouldBlock where the stream does not end.
        let _ = self.host.read_to_end(&mut all);
        all
    }

    fn host_sees_end(&mut self) -> bool {
        matches!(self.host.read(&mut [0]), Ok(0))
    }

    /// Fills the socket until data stays with us, and returns how much was written.
    fn stall(&mut self) -> usize {
        let mut written = 0;
        while self.connection.tx.is_empty() {
            self.guest_writes(&[7; 4096]);
            written += 4096;
        }
        written
    }
}

#[test]
fn data_flows_both_ways() {
    let mut test = Test::established(BUFFER);
    test.guest_writes(b"to the host");
    assert_eq!(test.host_reads(), b"to the host");
    test.host.write_all(b"to the guest").unwrap();
    assert!(!test.connection.wants_to_send());
    test.readable();
    assert!(test.connection.wants_to_send());
    assert_eq!(test.op(), Some(op::RW));
    assert_eq!(test.data, b"to the guest");
    assert_eq!(test.op(), None);
    assert!(!test.connection.wants_to_send());
}

#[test]
fn a_host_program_hears_ok_only_from_a_guest_that_accepts() {
    let mut test = Test::requesting();
    assert_eq!(test.op(), Some(op::REQUEST));
    assert_eq!(test.op(), None);
    test.guest_sends(op::RESPONSE);
    assert_eq!(test.host_reads(), b"OK 1073741824\n");

    let mut test = Test::requesting();
    assert_eq!(test.op(), Some(op::REQUEST));
    test.guest_sends(op::RST);
    assert!(test.connection.is_finished());
    assert_eq!(test.host_reads(), b"");
}

#[test]
fn an_answer_before_the_question_resets() {
    let mut test = Test::requesting();
    test.guest_sends(op::RESPONSE);
    assert_eq!(test.op(), Some(op::RST));
    assert!(test.connection.is_finished());
}

#[test]
fn a_host_program_that_gives_up_early_asks_nothing() {
    let mut test = Test::requesting();
    test.hung_up();
    assert!(test.connection.is_finished());
    assert_eq!(test.op(), None);
}

#[test]
fn the_guest_gets_no_more_than_it_has_room_for() {
    let mut test = Test::established(10);
    test.host.write_all(&[1; 25]).unwrap();
    test.readable();
    assert_eq!(test.packet().unwrap().len, 10);
    // One question, then silence until there is room.
    assert_eq!(test.op(), Some(op::CREDIT_REQUEST));
    assert_eq!(test.op(), None);
    assert!(!test.connection.wants_to_send());
    test.guest_sends_with(Header {
        buf_alloc: 10,
        fwd_cnt: 4,
        ..control(op::CREDIT_UPDATE)
    });
    assert_eq!(test.packet().unwrap().len, 4);
    assert_eq!(test.op(), Some(op::CREDIT_REQUEST));
    test.guest_sends_with(Header {
        buf_alloc: 100,
        fwd_cnt: 14,
        ..control(op::CREDIT_UPDATE)
    });
    assert_eq!(test.packet().unwrap().len, 11);
    assert_eq!(test.data, [1; 25]);
}

#[test]
fn a_stalled_host_program_stalls_the_guest_and_loses_nothing() {
    let mut test = Test::established(BUFFER);
    let mut written = test.stall();
    assert!(test.connection.wants_writable());
    while test.connection.tx.free() >= 4096 {
        test.guest_writes(&[7; 4096]);
        written += 4096;
    }
    // News of what the socket took; what is buffered is not among it.
    assert!(
        test.packet()
            .is_none_or(|news| news.op == op::CREDIT_UPDATE)
    );
    assert_eq!(test.op(), None);
    let mut read = 0;
    while read < written {
        read += test.host_reads().len();
        test.writable();
    }
    assert_eq!(read, written);
    assert!(!test.connection.wants_writable());
    let update = test.packet().unwrap();
    assert_eq!(update.op, op::CREDIT_UPDATE);
    assert_eq!(update.fwd_cnt as usize, written);
}

#[test]
fn more_than_the_credit_resets() {
    let mut test = Test::established(BUFFER);
    test.stall();
    test.guest_writes(&vec![7; BUFFER as usize]);
    assert_eq!(test.op(), Some(op::RST));
    assert!(test.connection.has_ended());
}

#[test]
fn a_credit_request_is_answered() {
    let mut test = Test::established(BUFFER);
    test.guest_writes(b"12345");
    test.guest_sends(op::CREDIT_REQUEST);
    let update = test.packet().unwrap();
    assert_eq!((update.op, update.fwd_cnt), (op::CREDIT_UPDATE, 5));
    assert_eq!(test.op(), None);
}

#[test]
fn the_host_may_end_its_half_alone() {
    let mut test = Test::established(BUFFER);
    test.host.write_all(b"last").unwrap();
    test.host.shutdown(Shutdown::Write).unwrap();
    test.readable();
    assert_eq!(test.op(), Some(op::RW));
    let end = test.packet().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, shutdown::SEND));
    assert_eq!(test.op(), None);
    test.guest_writes(b"answer");
    assert_eq!(test.host_reads(), b"answer");
    test.hung_up();
    let end = test.packet().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, shutdown::BOTH));
    assert!(test.connection.host_has_closed());
}

#[test]
fn what_the_host_wrote_before_closing_arrives() {
    let mut test = Test::established(4);
    test.host.write_all(b"12345678").unwrap();
    test.host = UnixStream::pair().unwrap().0;
    test.hung_up();
    assert_eq!(test.op(), Some(op::RW));
    assert_eq!(test.op(), Some(op::CREDIT_REQUEST));
    assert_eq!(test.op(), None);
    test.guest_sends_with(Header {
        buf_alloc: 4,
        fwd_cnt: 4,
        ..control(op::CREDIT_UPDATE)
    });
    assert_eq!(test.op(), Some(op::RW));
    assert_eq!(test.data, b"12345678");
    test.guest_sends_with(Header {
        buf_alloc: 4,
        fwd_cnt: 8,
        ..control(op::CREDIT_UPDATE)
    });
    let end = test.packet().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, shutdown::BOTH));
}

#[test]
fn the_guest_may_end_its_half_alone() {
    let mut test = Test::established(BUFFER);
    test.guest_writes(b"bye");
    test.guest_shuts(shutdown::SEND);
    assert_eq!(test.host_reads(), b"bye");
    assert!(test.host_sees_end());
    test.host.write_all(b"answer").unwrap();
    test.readable();
    assert_eq!(test.op(), Some(op::RW));
    assert_eq!(test.data, b"answer");
    // It said it would not.
    test.guest_writes(b"more");
    assert_eq!(test.op(), Some(op::RST));
}

#[test]
fn a_guest_that_stops_reading_stops_the_host() {
    let mut test = Test::established(BUFFER);
    test.guest_shuts(shutdown::RECEIVE);
    assert!(test.host.write_all(b"x").is_err());
    test.readable();
    assert_eq!(test.op(), None);
    test.guest_writes(b"still");
    assert_eq!(test.host_reads(), b"still");
}

#[test]
fn a_closed_guest_is_released_at_once_and_its_data_still_arrives() {
    let mut test = Test::established(BUFFER);
    let written = test.stall();
    test.guest_shuts(shutdown::BOTH);
    assert_eq!(test.op(), Some(op::RST));
    assert!(test.connection.has_ended());
    assert!(!test.connection.is_finished());
    let mut read = 0;
    while !test.connection.is_finished() {
        read += test.host_reads().len();
        test.writable();
    }
    read += test.host_reads().len();
    assert_eq!(read, written);
}

#[test]
fn a_host_program_that_is_gone_takes_everything_and_the_guest_is_told() {
    let mut test = Test::established(BUFFER);
    let stalled = test.stall();
    test.host = UnixStream::pair().unwrap().0;
    test.hung_up();
    assert!(!test.connection.wants_writable());
    test.guest_writes(b"into the void");
    let end = test.packet().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, shutdown::BOTH));
    assert_eq!(end.fwd_cnt as usize, stalled + 13);
    test.guest_sends(op::RST);
    assert!(test.connection.is_finished());
}

#[test]
fn every_packet_in_every_phase_leaves_a_sound_state() {
    let starts = [
        || Test::requesting(),
        || {
            let mut test = Test::requesting();
            test.packet();
            test
        },
        || Test::established(BUFFER),
        || {
            let mut test = Test::established(0);
            test.guest_shuts(shutdown::SEND);
            test
        },
    ];
    for start in starts {
        for op in 0..10 {
            for flags in [0, 1, 2, 3, u32::MAX] {
                for (buf_alloc, fwd_cnt) in [(0, 0), (u32::MAX, 0), (5, u32::MAX)] {
                    let mut test = start();
                    test.host.write_all(b"data").unwrap();
                    let header = Header {
                        op,
                        flags,
                        len: 3,
                        buf_alloc,
                        fwd_cnt,
                        ..Header::default()
                    };
                    test.connection.on_packet(&header, b"abc");
                    test.readable();
                    // It comes to rest.
                    let packets = std::iter::from_fn(|| test.packet()).take(20).count();
                    assert!(packets < 20, "{header:?}");
                    assert!(!test.connection.wants_to_send(), "{header:?}");
                }
            }
        }
    }
}
