//! What fuzz targets need of this crate's inside. Only with the feature `fuzzing`.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use crate::connect_line::{self, ConnectLine};
use crate::header::Header;
pub use crate::header::{HEADER_LEN, HOST_CID};
use crate::muxer::Muxer;

/// All connections of an imagined guest with context id [`Connections::GUEST_CID`].
#[derive(Debug)]
pub struct Connections(Muxer);

impl Connections {
    /// Context id of the guest; packets from another are dropped.
    pub const GUEST_CID: u64 = 3;

    /// No connections yet. `listener` is bound to `uds_path`.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn new(uds_path: PathBuf, listener: UnixListener) -> io::Result<Self> {
        Muxer::new(Self::GUEST_CID, uds_path, listener).map(Self)
    }

    /// The guest puts a packet into its queue: a header and what follows it. Whether it is listened to.
    pub fn guest_sends(&mut self, header: &[u8; HEADER_LEN], data: &[u8]) -> bool {
        if !self.0.accepts_packets() {
            return false;
        }
        let header = Header::decode(header);
        let data = usize::try_from(header.len)
            .ok()
            .and_then(|len| data.get(..len));
        self.0.on_packet(&header, data);
        true
    }

    /// The guest offers a buffer with this much room for data: the packet that it gets, as header and data.
    pub fn guest_takes(&mut self, room: usize) -> Option<([u8; HEADER_LEN], Vec<u8>)> {
        let mut data = vec![0; room];
        let header = self.0.next_packet(&mut data)?;
        data.truncate(usize::try_from(header.len).ok()?);
        assert_eq!(data.len() as u64, u64::from(header.len), "{header:?}");
        Some((header.encode(), data))
    }

    /// Takes in what happened on the host's sockets.
    ///
    /// # Errors
    /// Waiting for them failed.
    pub fn host_events(&mut self) -> io::Result<()> {
        self.0.on_host_events().map_err(io::Error::from)
    }
}

/// The port of a connect line that `received` starts with, and the line's length with its newline.
#[must_use]
pub fn connect_line(received: &[u8]) -> Option<(u32, usize)> {
    match connect_line::parse(received) {
        ConnectLine::Complete { port, len } => Some((port, len)),
        ConnectLine::Incomplete | ConnectLine::Invalid => None,
    }
}
