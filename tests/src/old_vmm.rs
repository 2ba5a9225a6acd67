//! Stands in for a VMM that is too old: answers every API call with its version.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

const BODY: &str = r#"{"firecracker_version":"0.20.0"}"#;

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let socket = args
        .iter()
        .position(|arg| arg == "--api-sock")
        .and_then(|i| args.get(i + 1))
        .map_or("firecracker.sock", String::as_str);
    for stream in UnixListener::bind(socket)?.incoming() {
        // A client that leaves is no reason to end.
        let _ = answer(stream?);
    }
    Ok(())
}

fn answer(stream: UnixStream) -> std::io::Result<()> {
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        if line?.is_empty() {
            let length = BODY.len();
            write!(
                writer,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{BODY}"
            )?;
        }
    }
    Ok(())
}
