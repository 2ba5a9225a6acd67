//! Frames that a guest sends to the metadata service: ARP, IP and TCP of any kind, with HTTP in it.
//!
//! The input is a list of steps, see [`Guest::step`].

#![no_main]

use std::net::Ipv4Addr;
use std::time::Duration;

use fc_tcg::mmds::{DEFAULT_ADDRESS, Mmds, Stack};
use libfuzzer_sys::fuzz_target;

const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
const GUEST_MAC: [u8; 6] = [6, 0, 0, 0, 0, 9];

/// Connections that the guest knows how to go on with, each from a port of its own.
const CONNECTIONS: usize = 4;
/// The first of these ports.
const FIRST_PORT: u16 = 50_000;

/// Longest frame that the service may send.
const MTU: usize = 1514;

/// More frames than one frame of a guest's can cause.
const MAX_ANSWERS: usize = 1000;

const ETHERNET: usize = 14;
const IP: usize = 20;
const ICMP: u8 = 1;
const TCP: u8 = 6;

/// Where a connection is.
#[derive(Clone, Copy, Default)]
struct Connection {
    /// The next sequence number that the service waits for.
    ours: u32,
    /// The next one that it will use.
    theirs: u32,
}

struct Guest<'a> {
    input: &'a [u8],
    stack: Stack,
    connections: [Connection; CONNECTIONS],
}

impl<'a> Guest<'a> {
    fn new(input: &'a [u8]) -> Self {
        let mmds = Mmds::new(100_000);
        let value = serde_json::json!({ "a": "b", "large": "x".repeat(40_000) });
        mmds.lock().store.put(value).expect("less than the limit");
        Self {
            input,
            stack: Stack::new(DEFAULT_ADDRESS, mmds),
            connections: [Connection::default(); CONNECTIONS],
        }
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.input.split_first_chunk()?;
        self.input = rest;
        Some(*first)
    }

    fn some(&mut self) -> Option<&'a [u8]> {
        let [length] = self.take()?;
        let (first, rest) = self
            .input
            .split_at(usize::from(length).min(self.input.len()));
        self.input = rest;
        Some(first)
    }

    /// One frame of the guest's; `None` at the input's end.
    fn step(&mut self) -> Option<()> {
        let [kind] = self.take()?;
        let frame = match kind % 4 {
            0 => self.some()?.to_vec(),
            // What a checksum would stop is not seen otherwise.
            1 => {
                let mut frame = self.some()?.to_vec();
                mend(&mut frame);
                frame
            }
            _ => self.segment()?,
        };
        if self.stack.wants(&frame) {
            self.stack.receive(&frame);
            self.run();
        }
        Some(())
    }

    /// A segment that fits a connection, or nearly.
    fn segment(&mut self) -> Option<Vec<u8>> {
        let [index, flags, sequence, acknowledged, window] = self.take()?;
        let index = usize::from(index) % CONNECTIONS;
        let data = self.some()?;
        let connection = self.connections[index];
        let near = |number: u32, by: u8| number.wrapping_add_signed(i32::from(by.cast_signed()));
        let mut frame = Vec::with_capacity(ETHERNET + 2 * IP + data.len());
        frame.extend([0xff; 6]);
        frame.extend(GUEST_MAC);
        frame.extend([8, 0]);
        let length = u16::try_from(2 * IP + data.len()).ok()?;
        frame.extend([0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, TCP, 0, 0]);
        frame.extend(GUEST.octets());
        frame.extend(DEFAULT_ADDRESS.octets());
        frame.extend((FIRST_PORT + u16::try_from(index).ok()?).to_be_bytes());
        frame.extend(80_u16.to_be_bytes());
        frame.extend(near(connection.ours, sequence).to_be_bytes());
        frame.extend(near(connection.theirs, acknowledged).to_be_bytes());
        frame.extend([0x50, flags, window, 0, 0, 0, 0, 0]);
        frame.extend(data);
        mend(&mut frame);
        Some(frame)
    }

    /// Lets the service do what there is to do, and looks at what it says.
    fn run(&mut self) {
        let frames = self.stack.run();
        assert!(
            frames.len() < MAX_ANSWERS,
            "{} frames for one",
            frames.len()
        );
        for frame in frames {
            assert!(frame.len() <= MTU, "{} bytes", frame.len());
            self.follow(&frame);
        }
    }

    /// Learns from a frame how its connection goes on.
    fn follow(&mut self, frame: &[u8]) -> Option<()> {
        let (ip, rest) = frame.get(ETHERNET..)?.split_at_checked(IP)?;
        if frame[12..ETHERNET] != [8, 0] || ip[9] != TCP {
            return None;
        }
        let (tcp, _) = rest.split_first_chunk::<IP>()?;
        let port = u16::from_be_bytes([tcp[2], tcp[3]]);
        let index = usize::from(port.checked_sub(FIRST_PORT)?);
        let connection = self.connections.get_mut(index)?;
        let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let data = length.checked_sub(IP + usize::from(tcp[12] >> 4) * 4)?;
        let marks = u32::from(tcp[13] & 1) + u32::from(tcp[13] >> 1 & 1);
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        connection.theirs = sequence.wrapping_add(u32::try_from(data).ok()? + marks);
        connection.ours = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
        Some(())
    }

    /// In the end it waits for the guest, or for time to pass.
    fn rest(&mut self) {
        let mut rounds = 0;
        while self.stack.delay() == Some(Duration::ZERO) {
            self.run();
            rounds += 1;
            assert!(rounds < MAX_ANSWERS, "the service is never done");
        }
    }
}

/// Gives an IPv4 packet in a frame the right checksums, its own and those of ICMP and TCP (RFC 791, 792, 9293).
fn mend(frame: &mut [u8]) {
    if frame.get(12..ETHERNET) != Some(&[8, 0]) {
        return;
    }
    let packet = &mut frame[ETHERNET..];
    let Some(first) = packet.first() else { return };
    let head = usize::from(first & 0x0f) * 4;
    if head < IP || packet.len() < head {
        return;
    }
    packet[10..12].fill(0);
    let sum = checksum(0, &packet[..head]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let (ip, rest) = packet.split_at_mut(head);
    let Some(rest) = total
        .checked_sub(head)
        .and_then(|length| rest.get_mut(..length))
    else {
        return;
    };
    let (at, pseudo) = match ip[9] {
        ICMP => (2, 0),
        TCP => (16, sum_of(&ip[12..IP]) + u32::from(TCP) + rest.len() as u32),
        _ => return,
    };
    if rest.len() < at + 2 {
        return;
    }
    rest[at..at + 2].fill(0);
    let sum = checksum(pseudo, rest);
    rest[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn sum_of(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2);
    words
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)))
        .sum()
}

/// The Internet checksum (RFC 1071) of `bytes`, and of what adds up to `sum`.
fn checksum(sum: u32, bytes: &[u8]) -> u16 {
    let mut sum = sum + sum_of(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fuzz_target!(|input: &[u8]| {
    let mut guest = Guest::new(input);
    while guest.step().is_some() {}
    guest.rest();
});
