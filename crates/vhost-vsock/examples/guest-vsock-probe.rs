//! The guest's side of this crate's VM test: `/init` of a tiny initrd. Loads
//! the modules listed in `/modules/order`, serves the ports below, and tells
//! the host it is there by connecting to [`READY`].

#[path = "../tests/support/pattern.rs"]
mod pattern;
#[path = "../tests/support/ports.rs"]
mod ports;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept, bind, connect, listen,
    shutdown, socket,
};
use pattern::Pattern;

/// Bytes read or written at a time where nothing else matters.
const PIECE: usize = 1 << 20;

fn main() {
    if let Err(error) = run() {
        println!("PROBE FAILED: {error}");
    }
    // PID 1 ends: the kernel panics and, with panic=-1, QEMU exits.
}

fn run() -> io::Result<()> {
    mount(
        Some("dev"),
        "/dev",
        Some("devtmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    for module in std::fs::read_to_string("/modules/order")?.lines() {
        let flags = nix::kmod::ModuleInitFlags::empty();
        nix::kmod::finit_module(File::open(module)?, c"", flags)
            .map_err(|error| io::Error::other(format!("{module}: {error}")))?;
    }
    setrlimit(Resource::RLIMIT_NOFILE, 100_000, 100_000)?;
    let gate = Arc::new(Gate::default());
    let held = Arc::clone(&gate);
    serve(ports::ECHO, |stream| {
        let mut reader = stream.try_clone()?;
        io::copy(&mut reader, stream)?;
        Ok(())
    })?;
    serve(ports::SINK, sink)?;
    serve(ports::HELD_SINK, move |stream| {
        held.wait();
        sink(stream)
    })?;
    serve(ports::RELEASE, move |_| {
        gate.open();
        Ok(())
    })?;
    serve(ports::SOURCE, source)?;
    serve(ports::READ_DISK, read_disk)?;
    serve(ports::DISCARD, discard)?;
    serve(ports::ZEROES, zeroes)?;
    serve(ports::CLOSE_AT_ONCE, |_| Ok(()))?;
    serve(ports::HALF_CLOSE, half_close)?;
    serve(ports::CONNECT_OUT, connect_out)?;
    drop(connect_host(ports::READY)?);
    loop {
        std::thread::park();
    }
}

/// Reads everything and says how much it was.
fn sink(stream: &mut File) -> io::Result<()> {
    let seed = read_numbers(stream)?[0];
    let answer = match Pattern::new(seed).check(stream) {
        Ok(count) => format!("{count}\n"),
        Err(error) => {
            // The host may be too busy sending to hear it.
            println!("Sink: {error}");
            format!("{error}\n")
        }
    };
    stream.write_all(answer.as_bytes())
}

/// Sends as much as asked for, ends its half, and closes.
fn source(stream: &mut File) -> io::Result<()> {
    let numbers = read_numbers(stream)?;
    Pattern::new(numbers[1]).send(stream, numbers[0])
}

/// Reads the disk in large pieces, as a copy would, and from the disk each time.
fn read_disk(stream: &mut File) -> io::Result<()> {
    let disk = File::open("/dev/vda")?;
    posix_fadvise(&disk, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    count(disk, stream)
}

/// Takes what comes in pieces of the same size.
fn discard(stream: &mut File) -> io::Result<()> {
    count(stream.try_clone()?, stream)
}

/// Sends as many zeroes as asked for, in pieces of the same size.
fn zeroes(stream: &mut File) -> io::Result<()> {
    let mut left = usize::try_from(read_numbers(stream)?[0]).map_err(io::Error::other)?;
    let buffer = vec![0; PIECE];
    while left > 0 {
        let len = left.min(PIECE);
        stream.write_all(&buffer[..len])?;
        left -= len;
    }
    Ok(())
}

/// Reads `from` to its end and tells `to` how much that was.
fn count(mut from: File, to: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut total = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return to.write_all(format!("{total}\n").as_bytes()),
            len => total += len,
        }
    }
}

/// Ends its own half first and reports what came afterwards over a connection of its own.
fn half_close(stream: &mut File) -> io::Result<()> {
    stream.write_all(b"bye")?;
    shutdown(stream.as_raw_fd(), Shutdown::Write)?;
    let count = Pattern::new(1).check(stream)?;
    connect_host(ports::HALF_CLOSE_REPORT)?.write_all(format!("{count}\n").as_bytes())
}

/// Connects to a host port, sends, ends its half and checks the answer.
fn connect_out(stream: &mut File) -> io::Result<()> {
    let numbers = read_numbers(stream)?;
    let (len, seed) = (numbers[1], numbers[2]);
    let port = u32::try_from(numbers[0]).map_err(io::Error::other)?;
    let outcome = connect_host(port).and_then(|mut host| {
        Pattern::new(seed).send(&mut host, len)?;
        shutdown(host.as_raw_fd(), Shutdown::Write)?;
        Pattern::new(seed + 1).check(&mut host)
    });
    let answer = match outcome {
        Ok(count) => format!("{count}\n"),
        Err(error) => format!("{:?}\n", error.kind()),
    };
    stream.write_all(answer.as_bytes())
}

/// The numbers on the stream's first line, read bytewise to leave the rest alone.
fn read_numbers(stream: &mut File) -> io::Result<Vec<u64>> {
    let mut line = String::new();
    BufReader::with_capacity(1, &mut *stream).read_line(&mut line)?;
    line.split_whitespace()
        .map(|word| word.parse().map_err(io::Error::other))
        .collect()
}

/// Listens on `port` and gives each connection a thread.
fn serve(
    port: u32,
    serve: impl Fn(&mut File) -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<()> {
    let listener = vsock()?;
    bind(
        listener.as_raw_fd(),
        &VsockAddr::new(nix::libc::VMADDR_CID_ANY, port),
    )?;
    // The host hears OK before accept: a burst is as long as it likes.
    listen(&listener, Backlog::new(4096)?)?;
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        loop {
            let fd = match accept(listener.as_raw_fd()) {
                Ok(fd) => fd,
                Err(error) => return println!("Port {port}: no more connections: {error}"),
            };
            // SAFETY: accept has just returned this descriptor to nobody else.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let serve = Arc::clone(&serve);
            let thread = std::thread::Builder::new().stack_size(64 * 1024);
            let spawned = thread.spawn(move || {
                if let Err(error) = serve(&mut File::from(fd)) {
                    println!("Port {port}: {error}");
                }
            });
            if let Err(error) = spawned {
                println!("Port {port}: {error}");
            }
        }
    });
    Ok(())
}

fn connect_host(port: u32) -> io::Result<File> {
    let stream = vsock()?;
    connect(
        stream.as_raw_fd(),
        &VsockAddr::new(nix::libc::VMADDR_CID_HOST, port),
    )?;
    Ok(File::from(stream))
}

fn vsock() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// Holds connections back until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        if let Ok(mut open) = self.open.lock() {
            *open = true;
        }
        self.changed.notify_all();
    }

    fn wait(&self) {
        if let Ok(open) = self.open.lock() {
            drop(self.changed.wait_while(open, |open| !*open));
        }
    }
}
