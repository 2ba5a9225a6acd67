//! The network between a guest's interface and the service: one address, one port, a few connections.

use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant as StdInstant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

use super::Mmds;
use super::http::{self, MAX_REQUEST};

/// The service's Ethernet address; every interface has a service of its own.
const MAC: EthernetAddress = EthernetAddress([0x06, 0x01, 0x23, 0x45, 0x67, 0x01]);

const PORT: u16 = 80;

/// Connections at a time.
const CONNECTIONS: usize = 30;

/// Bytes on their way in a connection.
const RECEIVE: usize = 4096;
const TRANSMIT: usize = 16384;

/// Longest frame without offloads.
const MTU: usize = 1514;

/// One interface's service.
pub struct Stack {
    address: Ipv4Addr,
    mmds: Mmds,
    interface: Interface,
    frames: Frames,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    start: StdInstant,
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A place for a connection.
struct Connection {
    socket: SocketHandle,
    /// Of a request.
    input: Vec<u8>,
    /// Of an answer.
    output: VecDeque<u8>,
    /// Whether it ends with that answer.
    last: bool,
}

impl Stack {
    /// The service at `address`.
    #[must_use]
    pub fn new(address: Ipv4Addr, mmds: Mmds) -> Self {
        let mut frames = Frames::default();
        let config = Config::new(MAC.into());
        let mut interface = Interface::new(config, &mut frames, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // Whatever address the guest has: it is on this wire. There is room for one.
            let _ = addresses.push(IpCidr::new(address.into(), 0));
        });
        let mut sockets = SocketSet::new(Vec::new());
        let connections = (0..CONNECTIONS).map(|_| {
            let buffer = |size| tcp::SocketBuffer::new(vec![0; size]);
            Connection {
                socket: sockets.add(tcp::Socket::new(buffer(RECEIVE), buffer(TRANSMIT))),
                input: Vec::new(),
                output: VecDeque::new(),
                last: false,
            }
        });
        let connections = connections.collect();
        Self {
            address,
            mmds,
            interface,
            frames,
            sockets,
            connections,
            start: StdInstant::now(),
        }
    }

    /// Whether a frame of the guest's is for the service: of ARP or IP, about its address.
    #[must_use]
    pub fn wants(&self, frame: &[u8]) -> bool {
        let address = match frame.get(12..14) {
            Some([0x08, 0x06]) => frame.get(38..42),
            Some([0x08, 0x00]) => frame.get(30..34),
            _ => None,
        };
        address == Some(&self.address.octets())
    }

    /// Takes a frame of the guest's.
    pub fn receive(&mut self, frame: &[u8]) {
        self.frames.received.push_back(frame.to_vec());
    }

    /// Does what there is to do, and returns the frames for the guest.
    pub fn run(&mut self) -> Vec<Vec<u8>> {
        loop {
            let now = self.now();
            self.interface
                .poll(now, &mut self.frames, &mut self.sockets);
            let mut state = self.mmds.lock();
            let mut moved = false;
            for connection in &mut self.connections {
                let socket = self.sockets.get_mut(connection.socket);
                moved |= connection.serve(socket, &mut state);
            }
            if !moved {
                return std::mem::take(&mut self.frames.sent);
            }
        }
    }

    /// When there is something to do again without a frame: to send one once more, say.
    pub fn delay(&mut self) -> Option<Duration> {
        let delay = self.interface.poll_delay(self.now(), &self.sockets);
        delay.map(|delay| Duration::from_micros(delay.total_micros()))
    }

    fn now(&self) -> Instant {
        let passed = self.start.elapsed().as_micros();
        Instant::from_micros(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

impl Connection {
    /// Moves bytes; says whether that gave the network something to do.
    fn serve(&mut self, socket: &mut tcp::Socket<'_>, state: &mut super::State) -> bool {
        if !socket.is_open() {
            self.input.clear();
            self.output.clear();
            self.last = false;
            // An open socket would refuse, and port 0.
            return socket.listen(PORT).is_ok();
        }
        let mut moved = false;
        if socket.can_recv() && self.input.len() < MAX_REQUEST {
            let room = MAX_REQUEST - self.input.len();
            let taken = socket.recv(|bytes| {
                let taken = bytes.len().min(room);
                self.input.extend(&bytes[..taken]);
                (taken, taken)
            });
            moved |= taken.is_ok_and(|taken| taken > 0);
        }
        // One after the other: what is not asked for yet takes no memory.
        if self.output.is_empty()
            && !self.last
            && let Some(answered) = http::answer(&self.input, state)
        {
            self.input.drain(..answered.request);
            self.output.extend(answered.answer);
            self.last = answered.last;
        }
        if socket.can_send() && !self.output.is_empty() {
            let sent = socket.send_slice(self.output.as_slices().0).unwrap_or(0);
            self.output.drain(..sent);
            moved |= sent > 0;
        }
        let over = self.last || !socket.may_recv();
        if over && self.output.is_empty() && socket.may_send() && is_established(socket) {
            socket.close();
            moved = true;
        }
        moved
    }
}

/// Whether both sides have opened the connection, and this one has not closed it.
fn is_established(socket: &tcp::Socket<'_>) -> bool {
    matches!(
        socket.state(),
        tcp::State::Established | tcp::State::CloseWait
    )
}

/// The wire: frames from the guest that are not looked at yet, and for it.
#[derive(Default)]
struct Frames {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);

struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Frames {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut frame = vec![0; length];
        let result = write(&mut frame);
        self.0.push(frame);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack() -> Stack {
        Stack::new(Ipv4Addr::new(169, 254, 169, 254), Mmds::new(100))
    }

    /// Who has `address`? Asked by 06:00:00:00:00:09, 172.16.0.2.
    fn arp(address: [u8; 4]) -> Vec<u8> {
        let sender = [6, 0, 0, 0, 0, 9];
        let mut frame = [[0xff; 6], sender].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(sender);
        frame.extend([172, 16, 0, 2]);
        frame.extend([0; 6]);
        frame.extend(address);
        frame
    }

    #[test]
    fn only_its_own_frames() {
        let stack = stack();
        assert!(stack.wants(&arp([169, 254, 169, 254])));
        assert!(!stack.wants(&arp([169, 254, 169, 253])));
        for length in 0..42 {
            assert!(!stack.wants(&arp([169, 254, 169, 254])[..length]));
        }
        let mut ip = vec![0; 60];
        ip[12] = 8;
        ip[30..34].copy_from_slice(&[169, 254, 169, 254]);
        assert!(stack.wants(&ip));
        ip[13] = 0xdd;
        assert!(!stack.wants(&ip));
    }

    #[test]
    fn arp_is_answered_and_noise_is_not() {
        let mut stack = stack();
        stack.receive(&arp([169, 254, 169, 254]));
        let frames = stack.run();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0][..6], [6, 0, 0, 0, 0, 9]);
        assert_eq!(frames[0][6..12], MAC.0);
        assert_eq!(frames[0][20..22], [0, 2]);
        let mut noise = [0xff; 60];
        noise[12..14].copy_from_slice(&[8, 0]);
        noise[30..34].copy_from_slice(&[169, 254, 169, 254]);
        for length in 0..60 {
            stack.receive(&noise[..length]);
        }
        assert!(stack.run().is_empty());
    }

    /// A guest with the same implementation of TCP, whose first segments get lost.
    #[test]
    fn a_guest_asks_and_hangs_up() {
        let mut stack = stack();
        let large = "x".repeat(40_000);
        stack.mmds = Mmds::new(100_000);
        let value = serde_json::json!({ "large": large });
        stack.mmds.lock().store.put(value).unwrap();
        let mut wire = Frames::default();
        let config = Config::new(EthernetAddress([6, 0, 0, 0, 0, 9]).into());
        let mut guest = Interface::new(config, &mut wire, Instant::ZERO);
        guest.update_ip_addrs(|addresses| {
            let address = Ipv4Addr::new(172, 16, 0, 2);
            addresses.push(IpCidr::new(address.into(), 0)).unwrap();
        });
        let mut sockets = SocketSet::new(Vec::new());
        let buffer = || tcp::SocketBuffer::new(vec![0; 2048]);
        let handle = sockets.add(tcp::Socket::new(buffer(), buffer()));
        let socket = sockets.get_mut::<tcp::Socket>(handle);
        let (to, from) = ((stack.address, PORT), 50_000);
        socket.connect(guest.context(), to, from).unwrap();

        let mut received = Vec::new();
        let mut asked = false;
        let deadline = StdInstant::now() + Duration::from_secs(120);
        while sockets.get_mut::<tcp::Socket>(handle).is_open() {
            assert!(StdInstant::now() < deadline, "{} bytes", received.len());
            guest.poll(stack.now(), &mut wire, &mut sockets);
            for frame in wire.sent.drain(..) {
                assert!(stack.wants(&frame));
                stack.receive(&frame);
            }
            wire.received.extend(stack.run());
            let socket = sockets.get_mut::<tcp::Socket>(handle);
            if socket.can_send() && !asked {
                let request = b"GET /large HTTP/1.1\r\nConnection: close\r\n\r\n";
                assert_eq!(socket.send_slice(request), Ok(request.len()));
                asked = true;
            }
            if socket.can_recv() {
                let take = |bytes: &mut [u8]| (bytes.len(), bytes.to_vec());
                received.extend(socket.recv(take).unwrap());
            }
            if asked && !socket.may_recv() {
                socket.close();
            }
            // The time that the other one waits before it sends again passes by itself.
            std::thread::yield_now();
        }
        assert!(received.ends_with(large.as_bytes()));
        stack.run();
        let first = stack
            .sockets
            .get_mut::<tcp::Socket>(stack.connections[0].socket);
        assert_eq!(first.state(), tcp::State::Listen);
    }
}
