//! A process's streams: the host's ports, and what comes and goes over them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::BOUND;

/// Where the agent will connect to.
pub struct Ports {
    pub base: u32,
    pub(super) stdin: UnixListener,
    pub(super) stdout: UnixListener,
    pub(super) stderr: UnixListener,
}

impl Ports {
    pub async fn accept(self, terminal: bool) -> Streams {
        let stdin = self.stdin.accept().await.unwrap().0;
        let stdout = self.stdout.accept().await.unwrap().0;
        let stderr = if terminal {
            None
        } else {
            Some(self.stderr.accept().await.unwrap().0)
        };
        Streams {
            stdin: Some(stdin),
            stdout,
            stderr,
        }
    }
}

/// The host's ends of a process's streams.
pub struct Streams {
    pub stdin: Option<UnixStream>,
    pub stdout: UnixStream,
    pub stderr: Option<UnixStream>,
}

impl Streams {
    /// Ends the input and reads both outputs to their ends.
    pub async fn finish(mut self) -> (String, String) {
        drop(self.stdin.take());
        let stdout = read_to_end(self.stdout);
        let stderr = async {
            match self.stderr {
                Some(stderr) => read_to_end(stderr).await,
                None => String::new(),
            }
        };
        tokio::join!(stdout, stderr)
    }

    pub async fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).await.unwrap();
    }
}

pub async fn read_to_end(mut stream: UnixStream) -> String {
    let mut text = String::new();
    timeout(BOUND, stream.read_to_string(&mut text))
        .await
        .expect("the end of a stream in time")
        .unwrap();
    text
}

/// Reads until the text read so far contains `wanted`.
pub async fn read_until(stream: &mut UnixStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains(wanted) {
        let count = timeout(BOUND, stream.read(&mut buffer))
            .await
            .unwrap_or_else(|_| panic!("{wanted:?} in time, got {text:?}"))
            .unwrap();
        assert_ne!(count, 0, "end of stream before {wanted:?}, got {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}
