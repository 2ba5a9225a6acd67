//! The suite's program in the guest: vsock, which no shell has.
//!
//! - `echo PORT`: listens, and prints a line when it does; sends back what each connection sends.
//! - `time-read PATH LENGTH`, `time-receive PORT LENGTH`, `time-transmit PORT LENGTH`: move so many bytes from a file, from
//!   the host and to the host, which acknowledges with one byte; print how many microseconds that took.
//! - `send PORT LENGTH SEED`: connects to the host, sends the data of [`fc_conformance::pattern`], and prints the
//!   line that the host answers with, or why that failed.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use fc_conformance::pattern::Pattern;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, socket,
};

/// Bytes moved at a time when it is for speed.
const BLOCK: usize = 64 << 10;

/// Context id of the host.
const HOST: u32 = 2;

/// `VMADDR_CID_ANY`: whatever context id this guest has.
const ANY: u32 = u32::MAX;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args[..] {
        ["echo", port] => echo(port),
        ["send", port, length, seed] => send(port, length, seed),
        ["time-read", path, length] => time(|| {
            let file = std::fs::File::open(path)?;
            take(file, length)
        }),
        ["time-receive", port, length] => time(|| take(dial(port)?, length)),
        ["time-transmit", port, length] => time(|| transmit(port, length)),
        _ => Err("Usage: echo PORT | send PORT LENGTH SEED | time-... SOURCE LENGTH".into()),
    };
    if let Err(error) = outcome {
        println!("Error: {error}");
    }
}

fn echo(port: &str) -> Result<(), Box<dyn Error>> {
    let listener = vsock()?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY, port.parse()?))?;
    listen(&listener, Backlog::new(16)?)?;
    println!("listening");
    loop {
        let connection = accept(listener.as_raw_fd())?;
        // SAFETY: accept has just made it, and nobody else knows of it.
        let connection = unsafe { OwnedFd::from_raw_fd(connection) };
        std::thread::spawn(move || give_back(connection.into()));
    }
}

fn give_back(mut stream: UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; 30_011];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn send(port: &str, length: &str, seed: &str) -> Result<(), Box<dyn Error>> {
    let mut stream = dial(port)?;
    Pattern::new(seed.parse()?).write(&mut stream, length.parse()?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    print!("{answer}");
    Ok(())
}

/// Connects to a port of the host.
fn dial(port: &str) -> Result<UnixStream, Box<dyn Error>> {
    let socket = vsock()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, port.parse()?))?;
    // Reading and writing are the same for every stream socket, and std has a type for this kind only.
    Ok(socket.into())
}

fn time(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    work()?;
    println!("{}", start.elapsed().as_micros());
    Ok(())
}

fn take(mut source: impl Read, length: &str) -> Result<(), Box<dyn Error>> {
    let mut left: usize = length.parse()?;
    let mut buffer = vec![0; BLOCK];
    while left > 0 {
        let part = left.min(BLOCK);
        match source.read(&mut buffer[..part])? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            read => left -= read,
        }
    }
    Ok(())
}

fn transmit(port: &str, length: &str) -> Result<(), Box<dyn Error>> {
    let mut stream = dial(port)?;
    let mut left: usize = length.parse()?;
    let buffer = vec![0; BLOCK];
    while left > 0 {
        left -= stream.write(&buffer[..left.min(BLOCK)])?;
    }
    stream.read_exact(&mut [0])?;
    Ok(())
}

fn vsock() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}
