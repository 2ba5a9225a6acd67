//! The suite's program in the guest: vsock, which no shell has.
//!
//! - `echo PORT`: listens; sends back what each connection sends.
//! - `send PORT LENGTH SEED`: connects to the host, sends the data of [`fc_conformance::pattern`], and prints the
//!   line that the host answers with, or why that failed.

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use fc_conformance::pattern::Pattern;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, socket,
};

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
        _ => Err("Usage: echo PORT | send PORT LENGTH SEED".into()),
    };
    if let Err(error) = outcome {
        println!("Error: {error}");
    }
}

fn echo(port: &str) -> Result<(), Box<dyn Error>> {
    let listener = vsock()?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY, port.parse()?))?;
    listen(&listener, Backlog::new(16)?)?;
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
    let socket = vsock()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, port.parse()?))?;
    // Reading and writing are the same for every stream socket, and std has a type for this kind only.
    let mut stream = UnixStream::from(socket);
    Pattern::new(seed.parse()?).write(&mut stream, length.parse()?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    print!("{answer}");
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
