//! Random numbers for the guest's entropy device, at the rate of its limiter.
//!
//! QEMU has a quota of its own that knows neither operations nor a one-time burst. So its device takes random
//! numbers from here, over a socket: QEMU's `rng-egd` asks with the two bytes 2 and `length`, and waits for as many bytes
//! (the entropy gathering daemon's "read, blocking").

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::limit::Limit;
use crate::metrics;
use crate::model::EntropyConfig;

/// Command byte of a request.
const READ_BLOCKING: u8 = 2;

/// A task that answers QEMU; it ends when this is dropped.
#[derive(Debug)]
pub struct Source(JoinHandle<()>);

impl Source {
    /// Starts answering, and returns QEMU's end of the socket.
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub fn start(config: &EntropyConfig) -> io::Result<(Self, OwnedFd)> {
        let (ours, of_qemu) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        let stream = UnixStream::from_std(ours)?;
        let limit = Limit::new(config.rate_limiter.unwrap_or_default());
        let task = tokio::spawn(async move {
            match answer(stream, &limit).await {
                // QEMU has ended.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => {
                    metrics::add("entropy", "entropy_event_fails");
                    log::error!("The guest gets no more random numbers: {error}");
                }
                Ok(never) => match never {},
            }
        });
        Ok((Self(task), of_qemu.into()))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn answer(mut stream: UnixStream, limit: &Limit) -> io::Result<std::convert::Infallible> {
    let mut bytes = [0; u8::MAX as usize];
    loop {
        let mut request = [0; 2];
        stream.read_exact(&mut request).await?;
        let [command, length] = request;
        if command != READ_BLOCKING {
            let text = format!("QEMU asked for {command}, which is no request");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if limit.ready().await {
            metrics::add("entropy", "entropy_rate_limiter_throttled");
        }
        let bytes = &mut bytes[..usize::from(length)];
        limit.take(bytes.len());
        // Up to 256 bytes come whole, once the host has any.
        getrandom(&mut *bytes, GetRandomFlags::empty())?;
        stream.write_all(bytes).await?;
        metrics::add("entropy", "entropy_event_count");
        metrics::add_many("entropy", "entropy_bytes", bytes.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn start(json: &str) -> (Source, UnixStream) {
        let (source, of_qemu) = Source::start(&serde_json::from_str(json).unwrap()).unwrap();
        let stream = StdStream::from(of_qemu);
        stream.set_nonblocking(true).unwrap();
        (source, UnixStream::from_std(stream).unwrap())
    }

    async fn ask(stream: &mut UnixStream, length: u8) -> Vec<u8> {
        stream.write_all(&[READ_BLOCKING, length]).await.unwrap();
        let mut bytes = vec![0; usize::from(length)];
        stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn random_numbers_as_many_as_asked_for() {
        let (_source, mut stream) = start("{}");
        let (first, second) = (ask(&mut stream, 255).await, ask(&mut stream, 255).await);
        assert_ne!(first, second);
        assert!(ask(&mut stream, 0).await.is_empty());
        stream.write_all(&[9, 1]).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }

    /// 100 bytes come at once and 300 more once. What follows takes an hour, in which no test stands still.
    #[tokio::test]
    async fn a_burst_is_granted_once() {
        let (_source, mut stream) = start(
            r#"{"rate_limiter":{"bandwidth":{"size":100,"one_time_burst":300,"refill_time":3600000}}}"#,
        );
        for _ in 0..4 {
            ask(&mut stream, 100).await;
        }
        let more = tokio::time::timeout(Duration::from_millis(100), ask(&mut stream, 100)).await;
        assert!(more.is_err(), "{more:?}");
    }

    /// 100 bytes come at once, then 100 in each tenth of a second.
    #[tokio::test]
    async fn bytes_are_limited() {
        let (_source, mut stream) =
            start(r#"{"rate_limiter":{"bandwidth":{"size":100,"refill_time":100}}}"#);
        let start = Instant::now();
        for _ in 0..6 {
            ask(&mut stream, 100).await;
        }
        assert!(start.elapsed() > Duration::from_millis(400));
    }

    #[tokio::test]
    async fn operations_are_limited_too() {
        let (_source, mut stream) =
            start(r#"{"rate_limiter":{"ops":{"size":1,"refill_time":100}}}"#);
        let start = Instant::now();
        for _ in 0..4 {
            ask(&mut stream, 1).await;
        }
        assert!(start.elapsed() > Duration::from_millis(250));
    }
}
