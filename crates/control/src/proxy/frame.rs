//! ttrpc's messages as they are on the wire: a header of 10 bytes (length, stream id, type, flags;
//! numbers big-endian) and a payload of at most 4 MiB.

use std::io;

use fc_proto::ttrpc::proto::{
    Codec, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE,
    Request,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(Vec<u8>);

impl Frame {
    /// Reads the next message; `None` at the connection's end.
    ///
    /// # Errors
    /// `UnexpectedEof` in the middle of a message, `InvalidData` when it is too long.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; MESSAGE_HEADER_LENGTH];
        if from.read(&mut bytes[..1]).await? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut bytes[1..]).await?;
        let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= MESSAGE_LENGTH_MAX)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "message too long"))?;
        bytes.resize(MESSAGE_HEADER_LENGTH + length, 0);
        from.read_exact(&mut bytes[MESSAGE_HEADER_LENGTH..]).await?;
        Ok(Some(Self(bytes)))
    }

    /// Writes the message as it was read.
    ///
    /// # Errors
    /// As the writer.
    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        to.write_all(&self.0).await?;
        to.flush().await
    }

    /// The stream that it belongs to.
    pub fn stream(&self) -> u32 {
        u32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    /// Whether it ends its stream: a response does.
    pub fn ends_stream(&self) -> bool {
        self.0[8] == MESSAGE_TYPE_RESPONSE
    }

    /// The service that it asks for; `None` if it is no request. One that cannot be decoded asks for
    /// no service known here.
    pub fn service(&self) -> Option<String> {
        (self.0[8] == MESSAGE_TYPE_REQUEST).then(|| {
            Request::decode(&self.0[MESSAGE_HEADER_LENGTH..])
                .map(|request| request.service)
                .unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::ttrpc::proto::MESSAGE_TYPE_DATA;

    fn bytes(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(stream.to_be_bytes());
        bytes.extend([kind, 4]);
        bytes.extend(payload);
        bytes
    }

    #[tokio::test]
    async fn what_goes_in_comes_out() {
        let request = Request {
            service: "Firecracker".into(),
            method: "StopVM".into(),
            ..Request::default()
        };
        let request = bytes(
            MESSAGE_TYPE_REQUEST,
            0x0102_0305,
            &request.encode().unwrap(),
        );
        let data = bytes(MESSAGE_TYPE_DATA, 7, b"");
        let both = [request.clone(), data.clone()].concat();
        let mut from = both.as_slice();
        let first = Frame::read(&mut from).await.unwrap().unwrap();
        assert_eq!(first.stream(), 0x0102_0305);
        assert_eq!(first.service().as_deref(), Some("Firecracker"));
        assert!(!first.ends_stream());
        let second = Frame::read(&mut from).await.unwrap().unwrap();
        assert_eq!((second.stream(), second.service()), (7, None));
        assert_eq!(Frame::read(&mut from).await.unwrap(), None);
        let mut out = Vec::new();
        first.write(&mut out).await.unwrap();
        second.write(&mut out).await.unwrap();
        assert_eq!(out, both);
    }

    #[tokio::test]
    async fn broken_messages_are_errors() {
        let long = [0x00, 0x40, 0x00, 0x01, 0, 0, 0, 1, 1, 0];
        let error = Frame::read(&mut long.as_slice()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let cut = &bytes(MESSAGE_TYPE_DATA, 1, b"abc")[..11];
        let error = Frame::read(&mut &cut[..]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let garbage = bytes(MESSAGE_TYPE_REQUEST, 1, &[0xff; 3]);
        let garbage = Frame::read(&mut garbage.as_slice()).await.unwrap().unwrap();
        assert_eq!(garbage.service().as_deref(), Some(""));
    }
}
