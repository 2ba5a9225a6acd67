//! How slowly a guest may send: it can stop at any byte, or send one in a while, for ever.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a guest may be waited for until it sends as much as is expected of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// From the start. The guest writes what the container wrote to its disk first.
    pub(super) start: Duration,
    /// After that, again and again.
    pub(super) then: Duration,
    /// How many bytes are expected in this time, unless the stream ends.
    pub(super) bytes: usize,
}

impl Pace {
    /// Loose: 8.5 KiB a second. An agent sends 64 KiB at once, and a small file takes a few hundred bytes.
    pub(super) const GUEST: Self = Self {
        start: Duration::from_secs(120),
        then: Duration::from_secs(30),
        bytes: 256 << 10,
    };
}

/// A blocking connection that fails with [`io::ErrorKind::TimedOut`] when the other side is slower than it may
/// be. The time that the reader takes itself does not count.
#[derive(Debug)]
pub(super) struct Paced {
    stream: UnixStream,
    pace: Pace,
    /// Time left for the bytes that are expected now.
    time: Duration,
    /// How many of them are missing.
    missing: usize,
}

impl Paced {
    pub(super) fn new(stream: UnixStream, pace: Pace) -> Self {
        Self {
            stream,
            pace,
            time: pace.start,
            missing: pace.bytes,
        }
    }
}

impl Read for Paced {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.time.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(self.time))?;
        let start = Instant::now();
        let read = self.stream.read(buffer);
        self.time = self.time.saturating_sub(start.elapsed());
        match read {
            Ok(count) => {
                self.missing = self.missing.saturating_sub(count);
                if self.missing == 0 {
                    self.time = self.pace.then;
                    self.missing = self.pace.bytes;
                }
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::ErrorKind::TimedOut.into())
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn pair(start: u64, then: u64) -> (Paced, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pace = Pace {
            start: Duration::from_millis(start),
            then: Duration::from_millis(then),
            bytes: 1000,
        };
        (Paced::new(ours, pace), theirs)
    }

    #[test]
    fn silence_ends() {
        let (mut ours, mut theirs) = pair(60_000, 50);
        theirs.write_all(&[1; 1000]).unwrap();
        assert_eq!(ours.read(&mut [0; 2000]).unwrap(), 1000);
        let error = ours.read(&mut [0; 2000]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_trickle_ends() {
        let (mut ours, mut theirs) = pair(100, 100);
        let (begun, has_begun) = std::sync::mpsc::channel();
        let sender = std::thread::spawn(move || {
            while theirs.write_all(b"x").is_ok() {
                // Waited for once.
                let _ = begun.send(());
                // The trickle itself: slower than a thousand bytes in a tenth of a second.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        has_begun.recv().unwrap();
        let error = io::copy(&mut ours, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(ours);
        sender.join().unwrap();
    }

    #[test]
    fn the_readers_own_time_does_not_count() {
        let (mut ours, mut theirs) = pair(60_000, 50);
        theirs.write_all(&[1; 3000]).unwrap();
        // Not by closing it: a process that another test is just starting has a copy.
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        for _ in 0..3 {
            assert_eq!(ours.read(&mut [0; 1000]).unwrap(), 1000);
            // A disk that is slow.
            std::thread::sleep(Duration::from_millis(60));
        }
        assert_eq!(ours.read(&mut [0; 1000]).unwrap(), 0);
    }
}
