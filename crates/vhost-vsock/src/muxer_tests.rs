//! The muxer between real Unix sockets and an imagined guest.

use std::io::{Read, Write};

use super::*;
use crate::counters::VsockCounters;
use crate::ports::FIRST_HOST_PORT;

const GUEST_CID: u64 = 3;

struct Test {
    muxer: Muxer,
    directory: tempfile::TempDir,
}

impl Test {
    fn new() -> Test {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Test {
            muxer: Muxer::new(GUEST_CID, path, listener).unwrap(),
            directory,
        }
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.directory.path().join(format!("v.sock_{port}"))).unwrap()
    }

    fn connect(&mut self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.directory.path().join("v.sock")).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        // Once to accept, once for what has been written.
        self.muxer.on_host_events().unwrap();
        self.muxer.on_host_events().unwrap();
        stream
    }

    fn packet(&mut self) -> Option<Header> {
        self.muxer.next_packet(&mut [0; 4096])
    }

    fn guest_sends(&mut self, header: &Header) {
        self.muxer.on_packet(header, Some(&[]));
    }
}

fn from_guest(op: u16, guest: u32, host: u32) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        socket_type: TYPE_STREAM,
        op,
        buf_alloc: 4096,
        ..Header::default()
    }
}

#[test]
fn a_host_program_reaches_the_guest() {
    let mut test = Test::new();
    let mut host = test.connect("CONNECT 52\nhi");
    let request = test.packet().unwrap();
    assert_eq!(
        (request.op, request.dst_port, request.src_port),
        (op::REQUEST, 52, FIRST_HOST_PORT)
    );
    assert_eq!((request.src_cid, request.dst_cid), (HOST_CID, GUEST_CID));
    test.guest_sends(&from_guest(op::RESPONSE, 52, FIRST_HOST_PORT));
    let mut ok = [0; 14];
    host.read_exact(&mut ok).unwrap();
    assert_eq!(&ok, b"OK 1073741824\n");
    let data = test.packet().unwrap();
    assert_eq!((data.op, data.len), (op::RW, 2));
}

#[test]
fn what_goes_over_connections_is_counted() {
    let mut test = Test::new();
    let mut host = test.connect("CONNECT 52\nhi");
    test.packet().unwrap();
    test.guest_sends(&from_guest(op::RESPONSE, 52, FIRST_HOST_PORT));
    test.packet().unwrap();
    let data = Header {
        len: 3,
        ..from_guest(op::RW, 52, FIRST_HOST_PORT)
    };
    test.muxer.on_packet(&data, Some(b"yes"));
    // Of no connection, and its answer.
    test.guest_sends(&from_guest(op::RW, 53, 53));
    assert_eq!(test.packet().unwrap().op, op::RST);
    let counted = VsockCounters {
        rx_packets: 2,
        rx_bytes: 2,
        tx_packets: 2,
        tx_bytes: 3,
        conns_added: 1,
        conns_removed: 0,
    };
    assert_eq!(test.muxer.counters().read(), counted);
    host.read_exact(&mut [0; 17]).unwrap();
    test.guest_sends(&from_guest(op::RST, 52, FIRST_HOST_PORT));
    assert_eq!(test.muxer.counters().read().conns_removed, 1);
}

#[test]
fn two_requests_get_different_ports() {
    let mut test = Test::new();
    let _streams = [test.connect("CONNECT 52\n"), test.connect("CONNECT 52\n")];
    let ports = [test.packet().unwrap(), test.packet().unwrap()].map(|packet| packet.src_port);
    assert_eq!(ports, [FIRST_HOST_PORT, FIRST_HOST_PORT + 1]);
}

#[test]
fn a_host_program_that_gives_up_leaves_nothing_behind() {
    let mut test = Test::new();
    let host = test.connect("CONNECT 52\ndata");
    assert_eq!(test.packet().unwrap().op, op::REQUEST);
    drop(host);
    test.muxer.on_host_events().unwrap();
    assert!(test.muxer.connections.is_empty() && test.muxer.by_ports.is_empty());
    let reset = test.packet().unwrap();
    assert_eq!(
        (reset.op, reset.dst_port, reset.src_port),
        (op::RST, 52, FIRST_HOST_PORT)
    );
    assert_eq!(test.packet(), None);
    // The guest's answer crosses the reset.
    test.guest_sends(&from_guest(op::RESPONSE, 52, FIRST_HOST_PORT));
    assert_eq!(test.packet().unwrap().op, op::RST);
}

#[test]
fn a_guest_that_ignores_requests_takes_no_slots() {
    let mut test = Test::new();
    for _ in 0..=MAX_CONNECTIONS {
        let host = test.connect("CONNECT 52\n");
        while test.packet().expect("a place for the request").op == op::RST {}
        drop(host);
        test.muxer.on_host_events().unwrap();
    }
    assert!(test.muxer.connections.is_empty());
}

#[test]
fn a_host_program_may_end_its_half_before_the_answer() {
    let mut test = Test::new();
    let mut host = test.connect("CONNECT 52\nhi");
    assert_eq!(test.packet().unwrap().op, op::REQUEST);
    host.shutdown(std::net::Shutdown::Write).unwrap();
    test.muxer.on_host_events().unwrap();
    test.guest_sends(&from_guest(op::RESPONSE, 52, FIRST_HOST_PORT));
    let mut ok = [0; 14];
    host.read_exact(&mut ok).unwrap();
    assert_eq!(&ok, b"OK 1073741824\n");
    assert_eq!(test.packet().unwrap().op, op::RW);
}

#[test]
fn a_bad_connect_line_is_closed_and_forgotten() {
    let mut test = Test::new();
    let mut stream = test.connect("GET / HTTP/1.1\r\n");
    let mut answer = Vec::new();
    // Closed with unread bytes, the socket may be reset.
    let _ = stream.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    assert!(test.muxer.greeting.is_empty() && test.muxer.connections.is_empty());
    assert_eq!(test.packet(), None);
}

#[test]
fn the_guest_reaches_whoever_listens() {
    let mut test = Test::new();
    let listener = test.listen(9);
    test.guest_sends(&from_guest(op::REQUEST, 77, 9));
    let response = test.packet().unwrap();
    assert_eq!(
        (response.op, response.dst_port, response.src_port),
        (op::RESPONSE, 77, 9)
    );
    listener.accept().unwrap();

    test.guest_sends(&from_guest(op::REQUEST, 77, 10));
    let refusal = test.packet().unwrap();
    assert_eq!(
        (refusal.op, refusal.dst_port, refusal.src_port),
        (op::RST, 77, 10)
    );
}

#[test]
fn a_full_backlog_refuses_and_does_not_block() {
    let mut test = Test::new();
    let _listener = test.listen(9);
    let refused = (0..MAX_CONNECTIONS).find(|port| {
        let port = u32::try_from(*port).unwrap();
        test.guest_sends(&from_guest(op::REQUEST, port, 9));
        test.packet().unwrap().op == op::RST
    });
    assert!(refused.is_some());
}

#[test]
fn strangers_packets_are_dropped_and_lost_ones_reset() {
    let mut test = Test::new();
    let rw = from_guest(op::RW, 1, 2);
    for stranger in [
        Header { src_cid: 4, ..rw },
        Header { src_cid: 2, ..rw },
        Header { dst_cid: 1, ..rw },
        Header {
            dst_cid: u64::MAX,
            ..rw
        },
        from_guest(op::RST, 1, 2),
    ] {
        test.guest_sends(&stranger);
        assert_eq!(test.packet(), None);
    }
    for lost in [
        rw,
        Header { op: 99, ..rw },
        Header {
            socket_type: 2,
            op: op::REQUEST,
            ..rw
        },
    ] {
        test.guest_sends(&lost);
        assert_eq!(test.packet().unwrap().op, op::RST);
        assert_eq!(test.packet(), None);
    }
}

#[test]
fn a_packet_without_its_data_ends_its_connection() {
    let mut test = Test::new();
    let _listener = test.listen(9);
    test.guest_sends(&from_guest(op::REQUEST, 77, 9));
    test.packet();
    test.muxer.on_packet(&from_guest(op::RW, 77, 9), None);
    assert_eq!(test.packet().unwrap().op, op::RST);
    assert!(test.muxer.connections.is_empty() && test.muxer.by_ports.is_empty());
}

#[test]
fn a_guest_that_takes_no_resets_is_not_listened_to() {
    let mut test = Test::new();
    let mut sent = 0;
    while test.muxer.accepts_packets() {
        test.guest_sends(&from_guest(op::RW, sent, 2));
        sent += 1;
    }
    assert_eq!(sent as usize, MAX_RESETS);
    assert!(test.packet().is_some());
    assert!(test.muxer.accepts_packets());
}

#[test]
fn random_packets_do_no_harm() {
    let mut test = Test::new();
    let listener = test.listen(1);
    listener.set_nonblocking(true).unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u32::try_from(state % below).unwrap()
    };
    let mut open = Vec::new();
    let data = [5; 5000];
    for _ in 0..100_000 {
        let len = random(5000);
        let header = Header {
            len,
            flags: random(5),
            buf_alloc: random(100_000),
            fwd_cnt: random(100_000),
            ..from_guest(u16::try_from(random(9)).unwrap(), random(4), random(3))
        };
        let data = (random(50) > 0).then_some(&data[..len as usize]);
        test.muxer.on_packet(&header, data);
        if let Ok((stream, _)) = listener.accept() {
            open.push(stream);
        }
        if open.len() > 4 {
            open.remove(0);
        }
        if random(3) == 0 {
            test.muxer.on_host_events().unwrap();
        }
        while test.packet().is_some() {}
        assert!(!test.muxer.has_packets());
    }
    drop(open);
    test.muxer.on_host_events().unwrap();
    assert!(test.muxer.connections.len() <= 16);
}
