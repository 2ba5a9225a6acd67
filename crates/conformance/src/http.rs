//! HTTP/1.1 on the API's socket, down to the bytes: what a client library would hide is part of what is tested.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::bound::bound;

/// Seconds that an answer is waited for; booting under emulation on a busy machine takes its time.
const PATIENCE: u32 = 60;

/// A VMM's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// Header lines in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as JSON; `Null` if there is none, a string if it is no JSON.
    pub body: Value,
}

impl Answer {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The reason in a refusal, empty if there is none.
    #[must_use]
    pub fn fault(&self) -> &str {
        self.body["fault_message"].as_str().unwrap_or_default()
    }
}

/// A connection to the API that stays open from request to request.
#[derive(Debug)]
pub struct Connection(BufReader<UnixStream>);

impl Connection {
    /// Connects to the API socket.
    ///
    /// # Panics
    /// Nobody listens there.
    #[must_use]
    pub fn open(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket)
            .unwrap_or_else(|error| panic!("Cannot connect to {}: {error}", socket.display()));
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(bound(PATIENCE))).expect("a timeout that is not zero can be set");
        }
        Self(BufReader::new(stream))
    }

    /// Sends a request with a JSON body, none if it is empty.
    ///
    /// # Panics
    /// As [`Connection::send`] and [`Connection::answer`].
    pub fn request(&mut self, method: &str, path: &str, body: &str) -> Answer {
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        if !body.is_empty() {
            text += &format!(
                "Content-Type: application/json\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        self.send((text + "\r\n" + body).as_bytes());
        self.answer()
    }

    /// Sends any bytes.
    ///
    /// # Panics
    /// The connection broke.
    pub fn send(&mut self, bytes: &[u8]) {
        let sent = self.0.get_mut().write_all(bytes);
        sent.unwrap_or_else(|error| panic!("Cannot send to the API: {error}"));
    }

    /// Reads one answer.
    ///
    /// # Panics
    /// The connection broke or what arrives is no HTTP.
    pub fn answer(&mut self) -> Answer {
        let status_line = self.line();
        let mut words = status_line.split(' ');
        assert_eq!(words.next(), Some("HTTP/1.1"), "{status_line:?}");
        let status = words.next().and_then(|word| word.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status in {status_line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            let (name, value) = line
                .split_once(':')
                .unwrap_or_else(|| panic!("no header: {line:?}"));
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer {
            status,
            headers,
            body: Value::Null,
        };
        let length = answer.header("content-length");
        let length = length.map_or(0, |value| value.parse().expect("a length is a number"));
        if length > 0 && !matches!(status, 100..=199 | 204) {
            let mut body = vec![0; length];
            let read = self.0.read_exact(&mut body);
            read.unwrap_or_else(|error| panic!("The answer's body did not arrive: {error}"));
            let text = String::from_utf8_lossy(&body);
            answer.body = serde_json::from_str(&text).unwrap_or_else(|_| Value::from(text));
        }
        answer
    }

    /// Whether the VMM has closed the connection; waits for it to do so.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.0.fill_buf(), Ok([]) | Err(_))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.0.read_line(&mut line);
        let read = read.unwrap_or_else(|error| panic!("No answer from the API: {error}"));
        assert!(
            read > 0,
            "The VMM closed the connection instead of answering"
        );
        line.trim_end_matches(['\r', '\n']).to_owned()
    }
}
