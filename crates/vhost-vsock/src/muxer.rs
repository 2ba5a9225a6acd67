//! All connections of one VM: routes the guest's packets to them, collects
//! theirs for the guest, and hands them their host sockets' events.

use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::connect_line::ConnectLine;
use crate::connection::{Connection, HostEvent};
use crate::counters::Counters;
use crate::header::{HOST_CID, Header, TYPE_STREAM, op};
use crate::host_sockets::{self, HostListener};
use crate::ports::{HostPorts, Ports};

/// Most connections at a time, those whose connect line is awaited included.
pub(crate) const MAX_CONNECTIONS: usize = 8192;

/// Up to so many connections, a new one gets [`LARGE_BUFFER`].
const LARGE_BUFFERS: usize = 256;
/// Receive buffer that is advertised to the guest per connection, in bytes.
pub(crate) const LARGE_BUFFER: u32 = 256 * 1024;
/// What a connection gets instead when there are many, so that a guest
/// that fills them all costs the host 560 MiB and not 2 GiB.
const SMALL_BUFFER: u32 = 64 * 1024;

/// So many resets may wait for the guest to take them. At this point it is not
/// listened to any more: it could cause any number without ever taking one.
const MAX_RESETS: usize = 1024;

/// Host events taken in at a time.
const EVENTS: usize = 64;

/// The epoll token of the listening socket; connections have larger ones.
const LISTENER: u64 = 0;

/// A connection with what the muxer needs to know about it.
#[derive(Debug)]
struct Entry {
    ports: Ports,
    connection: Connection,
    /// It stands in the queue of those that have a packet for the guest.
    queued: bool,
    /// Epoll reports when its socket takes data.
    watching_writable: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Muxer {
    guest_cid: u64,
    uds_path: PathBuf,
    listener: HostListener,
    /// Edge-triggered for connections: events cost nothing while a connection
    /// cannot use them.
    epoll: OwnedFd,
    /// Host programs whose connect line has not arrived.
    greeting: HashMap<u64, UnixStream>,
    connections: HashMap<u64, Entry>,
    by_ports: HashMap<Ports, u64>,
    /// Connections with a packet for the guest, each once, taken in turn.
    ready: VecDeque<u64>,
    resets: VecDeque<Ports>,
    next_token: u64,
    host_ports: HostPorts,
    counters: Arc<Counters>,
}

impl Muxer {
    /// A muxer without connections. `listener` is bound to `uds_path`.
    pub(crate) fn new(
        guest_cid: u64,
        uds_path: PathBuf,
        listener: UnixListener,
    ) -> std::io::Result<Muxer> {
        let listener = HostListener::new(listener)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            listener.socket(),
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?;
        Ok(Muxer {
            guest_cid,
            uds_path,
            listener,
            epoll,
            greeting: HashMap::new(),
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: LISTENER + 1,
            host_ports: HostPorts::default(),
            counters: Arc::default(),
        })
    }

    /// The counters, which go on.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Whether the guest's packets may be taken now.
    pub(crate) fn accepts_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether [`Muxer::next_packet`] may have something.
    pub(crate) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Takes in a packet of the guest. `data` is what follows the header, or
    /// `None` if the guest announced more than it sent or could ever send.
    pub(crate) fn on_packet(&mut self, header: &Header, data: Option<&[u8]>) {
        if header.dst_cid != HOST_CID || header.src_cid != self.guest_cid {
            tracing::debug!(?header, "Packet between others dropped");
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        if header.socket_type != TYPE_STREAM {
            return self.refuse(header, ports);
        }
        let Some(&token) = self.by_ports.get(&ports) else {
            if header.op == op::REQUEST {
                self.connect(header, ports);
            } else {
                self.refuse(header, ports);
            }
            return;
        };
        self.counters.sent(data.map_or(0, <[u8]>::len));
        self.with(token, |connection| match data {
            Some(data) => connection.on_packet(header, data),
            None => connection.reset(),
        });
    }

    /// The next packet for the guest; its data, if any, in `data`.
    pub(crate) fn next_packet(&mut self, data: &mut [u8]) -> Option<Header> {
        if let Some(ports) = self.resets.pop_front() {
            let reset = Header {
                op: op::RST,
                ..Header::default()
            };
            return Some(ports.address(self.guest_cid, reset));
        }
        for _ in 0..self.ready.len() {
            let token = self.ready.pop_front()?;
            let Some(entry) = self.connections.get_mut(&token) else {
                continue;
            };
            entry.queued = false;
            let ports = entry.ports;
            let packet = self.with(token, |connection| connection.next_packet(data));
            if let Some(packet) = packet.flatten() {
                self.counters.received(packet.len);
                return Some(ports.address(self.guest_cid, packet));
            }
        }
        None
    }

    /// Handles what has happened on the host's sockets.
    pub(crate) fn on_host_events(&mut self) -> Result<(), Errno> {
        // What does not fit is reported again.
        let mut events = [const { MaybeUninit::uninit() }; EVENTS];
        let at_once = Timespec::default();
        let (events, _) = match epoll::wait(&self.epoll, &mut events, Some(&at_once)) {
            Ok(events) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error),
        };
        for event in events {
            self.on_host_event(event.data.u64(), event.flags);
        }
        Ok(())
    }

    fn on_host_event(&mut self, token: u64, flags: EventFlags) {
        if token == LISTENER {
            self.accept();
        } else if self.greeting.contains_key(&token) {
            self.greet(token, flags);
        } else {
            self.pass_on(token, flags);
        }
    }

    /// Tells a connection what has happened on its socket.
    fn pass_on(&mut self, token: u64, flags: EventFlags) {
        let event = HostEvent {
            readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::ERR),
            writable: flags.intersects(EventFlags::OUT | EventFlags::ERR),
            hung_up: flags.contains(EventFlags::HUP),
        };
        let abandoned = self.with(token, |connection| {
            connection.on_host_event(event);
            connection.is_abandoned()
        });
        if abandoned == Some(true) {
            self.drop_and_reset(token);
        }
    }

    fn accept(&mut self) {
        while let Some(stream) = self.listener.accept() {
            if !self.make_room() {
                tracing::warn!(
                    limit = MAX_CONNECTIONS,
                    "Too many connections: one from the host is refused"
                );
                continue;
            }
            let token = self.token();
            if self.watch(&stream, token).is_ok() {
                self.greeting.insert(token, stream);
            }
        }
    }

    /// Reads on in a connect line.
    fn greet(&mut self, token: u64, flags: EventFlags) {
        let Some(stream) = self.greeting.get(&token) else {
            return;
        };
        match host_sockets::read_connect_line(stream) {
            ConnectLine::Incomplete if !flags.contains(EventFlags::RDHUP) => {}
            ConnectLine::Incomplete | ConnectLine::Invalid => {
                tracing::debug!("Host connection without a valid CONNECT line closed");
                self.greeting.remove(&token);
            }
            ConnectLine::Complete { port, .. } => {
                let Some(stream) = self.greeting.remove(&token) else {
                    return;
                };
                let by_ports = &self.by_ports;
                let ports = self
                    .host_ports
                    .pair_with(port, |ports| by_ports.contains_key(ports));
                let connection = Connection::from_host(ports.host, stream, self.buffer_size());
                self.insert(token, ports, connection);
                // The same event may have said that the stream has an end already.
                self.pass_on(token, flags);
            }
        }
    }

    /// Connects the guest to the host program that listens on its port.
    fn connect(&mut self, request: &Header, ports: Ports) {
        if !self.make_room() {
            tracing::warn!(
                limit = MAX_CONNECTIONS,
                "Too many connections: one from the guest is refused"
            );
            return self.resets.push_back(ports);
        }
        let token = self.token();
        let connected = host_sockets::connect(&self.uds_path, ports.host)
            .and_then(|stream| self.watch(&stream, token).map(|()| stream));
        match connected {
            Ok(stream) => {
                let connection = Connection::from_guest(request, stream, self.buffer_size());
                self.insert(token, ports, connection);
            }
            Err(error) => {
                tracing::debug!(port = ports.host, %error, "No host program for the guest's connection");
                self.resets.push_back(ports);
            }
        }
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, header: &Header, ports: Ports) {
        // A reset for a reset would never end.
        if header.op != op::RST {
            self.resets.push_back(ports);
        }
    }

    /// Whether one more connection is within the limit; those that only the
    /// guest keeps alive give way.
    fn make_room(&mut self) -> bool {
        if self.greeting.len() + self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let stale = self
            .connections
            .iter()
            .find(|(_, entry)| entry.connection.host_has_closed())
            .map(|(token, _)| *token);
        let Some(token) = stale else {
            return false;
        };
        self.drop_and_reset(token);
        true
    }

    /// Forgets a connection of which the guest knows, and owes the guest a reset.
    ///
    /// At once, not when the guest takes it: until then there would be a socket
    /// for each. Resets go before requests, so there are never more of these
    /// than there can be connections.
    fn drop_and_reset(&mut self, token: u64) {
        if let Some(entry) = self.connections.remove(&token) {
            self.counters.connection_removed();
            self.by_ports.remove(&entry.ports);
            self.resets.push_back(entry.ports);
        }
    }

    fn insert(&mut self, token: u64, ports: Ports, connection: Connection) {
        self.by_ports.insert(ports, token);
        let entry = Entry {
            ports,
            connection,
            queued: false,
            watching_writable: false,
        };
        self.connections.insert(token, entry);
        self.counters.connection_added();
        self.with(token, |_| ());
    }

    /// Does something with a connection and then whatever follows from it.
    /// `None` if there is no such connection (any more).
    fn with<T>(&mut self, token: u64, act: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        let entry = self.connections.get_mut(&token)?;
        let result = act(&mut entry.connection);
        if entry.connection.has_ended() && self.by_ports.get(&entry.ports) == Some(&token) {
            self.by_ports.remove(&entry.ports);
        }
        if entry.connection.wants_writable() != entry.watching_writable {
            entry.watching_writable = !entry.watching_writable;
            let flags = if entry.watching_writable {
                WATCHED | EventFlags::OUT
            } else {
                WATCHED
            };
            let data = EventData::new_u64(token);
            if let Err(error) = epoll::modify(&self.epoll, entry.connection.stream(), data, flags) {
                tracing::warn!(%error, "Cannot watch a host socket");
                entry.connection.reset();
            }
        }
        if entry.connection.wants_to_send() && !entry.queued {
            entry.queued = true;
            self.ready.push_back(token);
        }
        if entry.connection.is_finished() {
            self.connections.remove(&token);
            self.counters.connection_removed();
        }
        Some(result)
    }

    fn watch(&self, stream: &UnixStream, token: u64) -> Result<(), Errno> {
        epoll::add(&self.epoll, stream, EventData::new_u64(token), WATCHED)
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn buffer_size(&self) -> u32 {
        if self.connections.len() < LARGE_BUFFERS {
            LARGE_BUFFER
        } else {
            SMALL_BUFFER
        }
    }
}

/// What epoll reports of a connection's socket (hang-ups and errors always).
const WATCHED: EventFlags = EventFlags::IN
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

impl AsFd for Muxer {
    /// Readable while there is something for [`Muxer::on_host_events`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
#[path = "muxer_tests.rs"]
mod tests;
