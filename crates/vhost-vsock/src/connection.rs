//! One connection: a guest's vsock stream on one side, a host's Unix stream on
//! the other, and the state between them.
//!
//! Nothing here knows of queues, guest memory or epoll: packets come in through
//! [`Connection::on_packet`], go out through [`Connection::next_packet`], and
//! the host socket's events through [`Connection::on_host_event`].

use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::credit::Credit;
use crate::header::{Header, op, shutdown};
use crate::tx_buffer::TxBuffer;

/// What epoll said about the host socket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostEvent {
    /// There may be data, the end of the stream or an error to read.
    pub(crate) readable: bool,
    /// There may be room to write.
    pub(crate) writable: bool,
    /// The host program has closed its end entirely.
    pub(crate) hung_up: bool,
}

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A host program asked; the request has not reached the guest yet.
    Requesting,
    /// The guest has the request and has not answered.
    Requested,
    /// The guest asked; our response has not reached it yet.
    Accepting,
    /// Data may flow.
    Established,
    /// For the guest it is over. Data it sent before may still be on its way
    /// to the host program.
    Ended,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Connection {
    phase: Phase,
    /// The host's port, which `OK <port>` tells the host program.
    host_port: u32,
    stream: UnixStream,
    credit: Credit,
    tx: TxBuffer,
    /// The host socket had something to read when last heard of.
    readable: bool,
    hung_up: bool,
    /// Everything the host program sent has been read.
    host_finished: bool,
    /// The host program takes no more data.
    host_deaf: bool,
    /// `SHUTDOWN` flags the guest has sent.
    guest_shutdown: u32,
    /// `SHUTDOWN` flags the guest has been sent.
    told_shutdown: u32,
    credit_update_owed: bool,
    reset_owed: bool,
}

impl Connection {
    /// A connection the guest asked for with `request`; `stream` is connected and non-blocking.
    pub(crate) fn from_guest(request: &Header, stream: UnixStream, buf_alloc: u32) -> Connection {
        let mut connection = Connection::new(Phase::Accepting, request.dst_port, stream, buf_alloc);
        connection.credit.hear(request);
        connection
    }

    /// A connection a host program asked for; its connect line has been read
    /// from the non-blocking `stream`.
    pub(crate) fn from_host(host_port: u32, stream: UnixStream, buf_alloc: u32) -> Connection {
        let mut connection = Connection::new(Phase::Requesting, host_port, stream, buf_alloc);
        // Data may have arrived together with the connect line.
        connection.readable = true;
        connection
    }

    fn new(phase: Phase, host_port: u32, stream: UnixStream, buf_alloc: u32) -> Connection {
        Connection {
            phase,
            host_port,
            stream,
            credit: Credit::new(buf_alloc),
            tx: TxBuffer::new(usize::try_from(buf_alloc).unwrap_or(usize::MAX)),
            readable: false,
            hung_up: false,
            host_finished: false,
            host_deaf: false,
            guest_shutdown: 0,
            told_shutdown: 0,
            credit_update_owed: false,
            reset_owed: false,
        }
    }

    /// The host socket, for registering it with epoll.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the guest knows nothing of this connection any more, so that
    /// its ports may be used for another.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Whether there is nothing left to do: close the socket and forget it.
    pub(crate) fn is_finished(&self) -> bool {
        self.has_ended() && self.tx.is_empty()
    }

    /// Whether the host program has gone while the guest owes it an answer:
    /// there is nobody to tell it to any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.hung_up && self.phase == Phase::Requested
    }

    /// Whether only the guest has yet to notice that it is over.
    pub(crate) fn host_has_closed(&self) -> bool {
        self.hung_up && self.host_finished && self.tx.is_empty()
    }

    /// Whether to be told when the host socket takes data again.
    pub(crate) fn wants_writable(&self) -> bool {
        !self.tx.is_empty()
    }

    /// Whether [`Connection::next_packet`] has something to try.
    pub(crate) fn wants_to_send(&self) -> bool {
        if self.reset_owed {
            return true;
        }
        match self.phase {
            Phase::Requesting | Phase::Accepting => true,
            Phase::Requested | Phase::Ended => false,
            Phase::Established => {
                self.may_read() && (self.credit.peer_free() > 0 || self.credit.may_ask())
                    || self.shutdown_owed() != 0
                    || self.credit_update_owed
                    || self.credit.update_due()
            }
        }
    }

    /// Ends the connection: the guest gets a reset.
    pub(crate) fn reset(&mut self) {
        self.reset_owed = true;
    }

    /// Takes in a packet of the guest; `data` has `header.len` bytes.
    pub(crate) fn on_packet(&mut self, header: &Header, data: &[u8]) {
        if self.reset_owed || self.has_ended() {
            if header.op == op::RST {
                self.end();
            }
            return;
        }
        self.credit.hear(header);
        match (header.op, self.phase) {
            (op::RST, _) => self.end(),
            (op::RESPONSE, Phase::Requested) => self.on_response(),
            (op::RW, Phase::Established) => self.on_data(data),
            (op::SHUTDOWN, Phase::Established) => self.on_shutdown(header.flags),
            (op::CREDIT_UPDATE, _) => {}
            (op::CREDIT_REQUEST, Phase::Established) => self.credit_update_owed = true,
            _ => self.reset(),
        }
    }

    /// Takes in what epoll said about the host socket.
    pub(crate) fn on_host_event(&mut self, event: HostEvent) {
        self.readable |= event.readable;
        self.hung_up |= event.hung_up;
        if event.hung_up && self.phase == Phase::Requesting {
            // Whoever asked has gone before the guest heard of it.
            self.phase = Phase::Ended;
        }
        if event.writable || event.hung_up {
            self.flush();
        }
    }

    /// The next packet for the guest, `None` if there is nothing to say now.
    ///
    /// Fills in everything but context ids and ports. Data is read from the
    /// host socket into `data`, and `header.len` says how much.
    pub(crate) fn next_packet(&mut self, data: &mut [u8]) -> Option<Header> {
        let mut header = self.choose_packet(data)?;
        if header.op != op::RST {
            self.credit.tell(&mut header);
            self.credit_update_owed = false;
        }
        Some(header)
    }

    fn choose_packet(&mut self, data: &mut [u8]) -> Option<Header> {
        if self.reset_owed {
            self.end();
            return Some(control(op::RST));
        }
        match self.phase {
            Phase::Requesting => {
                self.phase = Phase::Requested;
                Some(control(op::REQUEST))
            }
            Phase::Accepting => {
                self.phase = Phase::Established;
                Some(control(op::RESPONSE))
            }
            Phase::Requested | Phase::Ended => None,
            Phase::Established => self.data_packet(data).or_else(|| self.news_packet()),
        }
    }

    /// A packet with data from the host, or the question for room for it.
    fn data_packet(&mut self, data: &mut [u8]) -> Option<Header> {
        if !self.may_read() || data.is_empty() {
            return None;
        }
        let free = self.credit.peer_free();
        if free == 0 {
            return self.credit.ask().then(|| control(op::CREDIT_REQUEST));
        }
        let room = data.len().min(usize::try_from(free).unwrap_or(usize::MAX));
        match rustix::net::recv(&self.stream, &mut data[..room], RecvFlags::empty()) {
            Ok((0, _)) => self.host_finished = true,
            Ok((len, _)) => {
                let len = u32::try_from(len).unwrap_or(free);
                self.credit.on_sent(len);
                return Some(Header {
                    len,
                    ..control(op::RW)
                });
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.readable = false,
            // The host program has closed without reading all we sent it.
            Err(_) => {
                self.host_finished = true;
                self.hung_up = true;
            }
        }
        None
    }

    /// A packet about the connection's state.
    fn news_packet(&mut self) -> Option<Header> {
        let flags = self.shutdown_owed();
        if flags != 0 {
            self.told_shutdown |= flags;
            return Some(Header {
                flags: self.told_shutdown,
                ..control(op::SHUTDOWN)
            });
        }
        (self.credit_update_owed || self.credit.update_due()).then(|| control(op::CREDIT_UPDATE))
    }

    /// Whether to read from the host socket for the guest.
    fn may_read(&self) -> bool {
        self.readable && !self.host_finished && self.guest_shutdown & shutdown::RECEIVE == 0
    }

    /// `SHUTDOWN` flags the guest should know of and does not.
    fn shutdown_owed(&self) -> u32 {
        let mut flags = 0;
        if self.host_finished {
            flags |= shutdown::SEND;
        }
        // While data waits for the guest, a hang-up alone is not worth a packet.
        if self.host_deaf || (self.hung_up && self.host_finished) {
            flags |= shutdown::RECEIVE;
        }
        flags & !self.told_shutdown
    }

    fn on_response(&mut self) {
        self.phase = Phase::Established;
        let ok = format!("OK {}\n", self.host_port);
        match rustix::net::send(&self.stream, ok.as_bytes(), SendFlags::NOSIGNAL) {
            Ok(len) if len == ok.len() => {}
            // It has gone, or reads nothing; what it sent before still counts.
            Err(Errno::PIPE | Errno::CONNRESET) => self.host_deaf = true,
            // An unread socket has room for a line.
            Ok(_) | Err(_) => self.reset(),
        }
    }

    fn on_data(&mut self, data: &[u8]) {
        if self.guest_shutdown & shutdown::SEND != 0 || data.len() > self.tx.free() {
            return self.reset();
        }
        let mut rest = data;
        if self.tx.is_empty() && !self.host_deaf {
            let sent = send_some(&self.stream, data, &mut self.host_deaf);
            self.credit.on_forwarded(sent);
            rest = &data[sent..];
        }
        if self.host_deaf {
            self.credit.on_forwarded(rest.len());
        } else {
            self.tx.push(rest);
        }
    }

    fn on_shutdown(&mut self, flags: u32) {
        self.guest_shutdown |= flags & shutdown::BOTH;
        if self.guest_shutdown == shutdown::BOTH {
            // The guest's close waits for this; what it sent goes on its own way.
            return self.reset();
        }
        if self.guest_shutdown & shutdown::RECEIVE != 0 {
            self.shut(Shutdown::Read);
        }
        self.finish_sending();
    }

    /// Writes buffered data until there is none or no room.
    fn flush(&mut self) {
        while !self.tx.is_empty() {
            let sent = send_some(&self.stream, self.tx.front(), &mut self.host_deaf);
            self.tx.consume(sent);
            self.credit.on_forwarded(sent);
            if self.host_deaf {
                self.credit.on_forwarded(self.tx.clear());
            } else if sent == 0 {
                return;
            }
        }
        self.finish_sending();
    }

    /// Passes the end of the guest's data on once all of it has been.
    fn finish_sending(&mut self) {
        if self.guest_shutdown & shutdown::SEND != 0 && self.tx.is_empty() {
            self.shut(Shutdown::Write);
        }
    }

    fn shut(&self, how: Shutdown) {
        if let Err(error) = self.stream.shutdown(how)
            && error.kind() != ErrorKind::NotConnected
        {
            tracing::debug!(port = self.host_port, %error, "Cannot shut a host socket down");
        }
    }

    /// For the guest it is over; what it sent stays owed to the host program.
    fn end(&mut self) {
        self.reset_owed = false;
        self.phase = Phase::Ended;
    }
}

/// Writes as much of `data` as the host socket takes and returns how much that
/// was; sets `deaf` if it will never take more.
fn send_some(stream: &UnixStream, data: &[u8], deaf: &mut bool) -> usize {
    let mut sent = 0;
    while sent < data.len() {
        match rustix::net::send(stream, &data[sent..], SendFlags::NOSIGNAL) {
            Ok(len) => sent += len,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(_) => {
                *deaf = true;
                break;
            }
        }
    }
    sent
}

/// A header without flags or data.
fn control(op: u16) -> Header {
    Header {
        op,
        ..Header::default()
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
