//! Ports: what tells connections apart in packets.

use crate::header::{HOST_CID, Header, TYPE_STREAM};

/// First port given to a host program's connection, as in Firecracker.
pub(crate) const FIRST_HOST_PORT: u32 = 1 << 30;
/// Ports end here.
const END_HOST_PORT: u32 = 1 << 31;

/// The pair of ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

impl Ports {
    /// A packet from the host's side of a connection to the guest's.
    pub(crate) fn address(self, guest_cid: u64, packet: Header) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.host,
            dst_port: self.guest,
            socket_type: TYPE_STREAM,
            ..packet
        }
    }
}

/// The host's ports for its programs' connections, in turn, so that one is not used again soon.
#[derive(Debug)]
pub(crate) struct HostPorts {
    next: u32,
}

impl Default for HostPorts {
    fn default() -> HostPorts {
        HostPorts {
            next: FIRST_HOST_PORT,
        }
    }
}

impl HostPorts {
    /// The next pair with the port `guest` that is not in use. There are many more than connections can be.
    pub(crate) fn pair_with(&mut self, guest: u32, in_use: impl Fn(&Ports) -> bool) -> Ports {
        loop {
            let ports = Ports {
                host: self.next,
                guest,
            };
            self.next += 1;
            if self.next == END_HOST_PORT {
                self.next = FIRST_HOST_PORT;
            }
            if !in_use(&ports) {
                return ports;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_in_turn_but_not_twice() {
        let mut ports = HostPorts::default();
        assert_eq!(ports.pair_with(7, |_| false).host, FIRST_HOST_PORT);
        let second = ports.pair_with(7, |ports| ports.host == FIRST_HOST_PORT + 1);
        assert_eq!(second.host, FIRST_HOST_PORT + 2);
        ports.next = END_HOST_PORT - 1;
        assert_eq!(ports.pair_with(7, |_| false).host, END_HOST_PORT - 1);
        assert_eq!(ports.pair_with(7, |_| false).host, FIRST_HOST_PORT);
    }
}
