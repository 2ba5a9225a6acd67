//! A hostile guest and clumsy host programs on a vsock device: packets of any kind, connections, data, hang-ups.
//!
//! The input is a list of steps, see [`Fuzz::step`].

#![no_main]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use fc_vhost_vsock::fuzzing::{Connections, HEADER_LEN, HOST_CID};
use libfuzzer_sys::fuzz_target;

/// The host port that a host program listens on.
const LISTENED: u32 = 1;

/// The port of the first connection that a host program makes.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// More packets than any input can cause: a guest that is given packets without end is starved.
const MAX_PACKETS: usize = 100_000;

/// Host programs at a time, per direction.
const MAX_PROGRAMS: usize = 4;

struct Fuzz<'a> {
    input: &'a [u8],
    device: Connections,
    socket: PathBuf,
    listener: UnixListener,
    programs: Vec<UnixStream>,
}

impl<'a> Fuzz<'a> {
    fn new(directory: &Path, input: &'a [u8]) -> Self {
        let bind = |name: &str| {
            let path = directory.join(name);
            // Of the input before.
            drop(fs::remove_file(&path));
            UnixListener::bind(&path).expect("a socket in a directory of our own")
        };
        let socket = directory.join("v.sock");
        let device = Connections::new(socket.clone(), bind("v.sock")).expect("file descriptors");
        let listener = bind(&format!("v.sock_{LISTENED}"));
        listener.set_nonblocking(true).expect("a flag of a socket");
        Self {
            input,
            device,
            socket,
            listener,
            programs: Vec::new(),
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.input.split_first()?;
        self.input = rest;
        Some(*first)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.input.split_first_chunk()?;
        self.input = rest;
        Some(*first)
    }

    fn some(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte().unwrap_or(0)).min(self.input.len());
        let (first, rest) = self.input.split_at(length);
        self.input = rest;
        first
    }

    /// One thing that happens; `None` at the input's end.
    fn step(&mut self) -> Option<()> {
        match self.byte()? % 8 {
            0 => {
                let header = self.take()?;
                let data = self.some();
                self.device.guest_sends(&header, data);
            }
            // Most random headers are about nothing: these are about few ports.
            1..=3 => {
                let header = self.likely_header()?;
                let data = vec![7; 65_536];
                self.device.guest_sends(&header, &data);
            }
            4 => {
                let mut stream = UnixStream::connect(&self.socket).ok()?;
                stream.set_nonblocking(true).ok()?;
                // A full socket is as good as a full one later.
                drop(stream.write(self.some()));
                self.keep(stream);
            }
            5 => {
                let data = self.some();
                if let Some(stream) = self.programs.last_mut() {
                    drop(stream.write(data));
                }
            }
            6 => {
                let mut buffer = [0; 4096];
                let at = usize::from(self.byte()?);
                if at < self.programs.len() {
                    self.programs.remove(at);
                } else if let Some(stream) = self.programs.first_mut() {
                    drop(stream.read(&mut buffer));
                }
            }
            _ => {
                self.device.host_events().expect("epoll works");
                let room = usize::from(self.byte()?) * 16;
                drop(self.device.guest_takes(room));
            }
        }
        if let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true).ok()?;
            self.keep(stream);
        }
        Some(())
    }

    fn keep(&mut self, stream: UnixStream) {
        if self.programs.len() == 2 * MAX_PROGRAMS {
            self.programs.remove(0);
        }
        self.programs.push(stream);
    }

    /// A header between the guest and the host (fields as in virtio 1.2, section 5.10.6).
    fn likely_header(&mut self) -> Option<[u8; HEADER_LEN]> {
        let [op, guest_port, host_port, flags, len_low, len_high] = self.take()?;
        let host_port = match host_port % 4 {
            port @ 0..=1 => u32::from(port),
            port => FIRST_HOST_PORT + u32::from(port - 2),
        };
        let mut header = Vec::with_capacity(HEADER_LEN);
        header.extend(Connections::GUEST_CID.to_le_bytes());
        header.extend(HOST_CID.to_le_bytes());
        header.extend(u32::from(guest_port % 4).to_le_bytes());
        header.extend(host_port.to_le_bytes());
        header.extend([len_low, len_high, 0, 0]);
        header.extend([1, 0, op % 9, 0, flags % 5, 0, 0, 0]);
        // Credit: how much the guest takes, and how much it has taken.
        header.extend(self.take::<8>()?);
        header.try_into().ok()
    }

    /// In the end the guest gets what there is for it.
    fn drain(&mut self) {
        self.device.host_events().expect("epoll works");
        let mut packets = 0;
        while self.device.guest_takes(4096).is_some() {
            packets += 1;
            assert!(packets < MAX_PACKETS, "packets without end");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| tempfile::tempdir().expect("a temporary directory"));
    let mut fuzz = Fuzz::new(directory.path(), input);
    while fuzz.step().is_some() {}
    fuzz.drain();
    fuzz.programs.clear();
    fuzz.drain();
});
