//! The 44-byte header in front of every vsock packet (virtio 1.2, section 5.10.6,
//! `struct virtio_vsock_hdr`; all fields little-endian).

/// Length of an encoded header in bytes.
pub const HEADER_LEN: usize = 44;

/// The host's context id.
pub const HOST_CID: u64 = 2;

/// The only socket type offered: a byte stream.
pub(crate) const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_OP_*`: what a packet asks for.
pub(crate) mod op {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RST: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const RW: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// `VIRTIO_VSOCK_SHUTDOWN_*`: flags of a `SHUTDOWN` packet, about its sender.
pub(crate) mod shutdown {
    /// The sender receives no more data.
    pub(crate) const RECEIVE: u32 = 1;
    /// The sender sends no more data.
    pub(crate) const SEND: u32 = 2;
    /// Both directions: the sender has closed.
    pub(crate) const BOTH: u32 = RECEIVE | SEND;
}

/// A decoded header. Every value is possible: the guest wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    /// Bytes of data that follow the header.
    pub(crate) len: u32,
    pub(crate) socket_type: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    /// Size of the sender's receive buffer for this connection, in bytes.
    pub(crate) buf_alloc: u32,
    /// Bytes the sender has taken out of that buffer so far, modulo 2^32.
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// Decodes a header; there are no invalid ones at this level.
    pub(crate) fn decode(raw: &[u8; HEADER_LEN]) -> Header {
        let mut fields = Fields { raw, at: 0 };
        Header {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            socket_type: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// Encodes the header as it stands in guest memory.
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut raw = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            raw[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.socket_type.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        raw
    }
}

/// Walks the fields of an encoded header.
struct Fields<'a> {
    raw: &'a [u8; HEADER_LEN],
    at: usize,
}

impl Fields<'_> {
    /// The next `N` bytes; the callers' field sizes add up to [`HEADER_LEN`].
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.raw[self.at..self.at + N]);
        self.at += N;
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_at_the_offsets_of_the_specification() {
        let raw: [u8; HEADER_LEN] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let header = Header::decode(&raw);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.src_port, 0x1312_1110);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!(header.socket_type, 0x1d1c);
        assert_eq!(header.op, 0x1f1e);
        assert_eq!(header.flags, 0x2322_2120);
        assert_eq!(header.buf_alloc, 0x2726_2524);
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.encode(), raw);
    }
}
