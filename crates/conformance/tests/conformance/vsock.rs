//! vsock: the host's protocol on the Unix socket, and data in both directions.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use fc_conformance::bound::bound;
use fc_conformance::initrd::PROGRAM;
use fc_conformance::pattern::Pattern;

use crate::OnGuest;
use crate::running::{Guest, metrics_until_now, sum};

pub const CASES: &[(&str, OnGuest)] = &[
    ("vsock::host_to_guest_and_back", host_to_guest),
    ("vsock::connections_at_once", at_once),
    ("vsock::guest_to_host", guest_to_host),
    ("vsock::port_that_nobody_listens_on", nobody_listens),
    ("vsock::line_that_is_no_connect", no_connect_line),
    ("vsock::metrics", metrics),
];

/// `uds_path` of the device.
pub const SOCKET: &str = "vsock.sock";

/// The port on which the guest sends back what it receives.
pub const ECHO: u32 = 52;

/// Seconds that one read or write is waited for.
const PATIENCE: u32 = 120;

/// Sends a first line to the device; its answer, empty if it closes instead.
fn dial(guest: &Guest, line: &str) -> (String, BufReader<UnixStream>) {
    let mut stream = UnixStream::connect(guest.directory.path().join(SOCKET)).unwrap();
    stream.set_read_timeout(Some(bound(PATIENCE))).unwrap();
    stream.set_write_timeout(Some(bound(PATIENCE))).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut answer = String::new();
    match reader.read_line(&mut answer) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    (answer, reader)
}

/// Connects to a port of the guest.
pub fn connect(guest: &Guest, port: u32) -> BufReader<UnixStream> {
    let (answer, stream) = dial(guest, &format!("CONNECT {port}\n"));
    let host_port = answer
        .strip_prefix("OK ")
        .and_then(|rest| rest.strip_suffix('\n'))
        .and_then(|port| port.parse::<u32>().ok());
    // Ports of the host's connections start in the upper half.
    assert!(host_port.is_some_and(|port| port >= 1 << 30), "{answer:?}");
    stream
}

/// Sends data and takes it back, both at once: neither side may wait for the other.
pub fn echo(stream: &mut BufReader<UnixStream>, length: u64, seed: u64) {
    let mut sender = stream.get_ref().try_clone().unwrap();
    let sent = std::thread::spawn(move || Pattern::new(seed).write(&mut sender, length));
    let received = Pattern::new(seed).check(stream, length);
    received.unwrap_or_else(|error| panic!("{length} bytes: {error}"));
    sent.join().unwrap().unwrap();
}

fn host_to_guest(guest: &mut Guest) {
    let mut kept = connect(guest, ECHO);
    for (length, seed) in [(1, 1), (4096, 2), (70_000, 3), (3_000_000, 4)] {
        echo(&mut connect(guest, ECHO), length, seed);
        echo(&mut kept, length, seed + 10);
    }
}

fn at_once(guest: &mut Guest) {
    let connections: Vec<_> = (0..10).map(|_| connect(guest, ECHO)).collect();
    let threads: Vec<_> = connections
        .into_iter()
        .zip(20..)
        .map(|(mut stream, seed)| std::thread::spawn(move || echo(&mut stream, 200_000, seed)))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

fn guest_to_host(guest: &mut Guest) {
    for (port, length) in [(1000_u32, 1_u64), (1001, 2_000_000)] {
        let path = guest.directory.path().join(format!("{SOCKET}_{port}"));
        let listener = UnixListener::bind(&path).unwrap();
        let seed = u64::from(port);
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(bound(PATIENCE))).unwrap();
            Pattern::new(seed).check(&mut stream, length)?;
            stream.write_all(b"all arrived\n")
        });
        let answer = guest.shell(&format!("{PROGRAM} send {port} {length} {seed}"));
        assert_eq!(answer, "all arrived");
        receiver.join().unwrap().unwrap();
    }
}

fn nobody_listens(guest: &mut Guest) {
    assert_eq!(dial(guest, "CONNECT 99\n").0, "");
    let answer = guest.shell(&format!("{PROGRAM} send 99 1 1"));
    assert!(answer.starts_with("Error: ECONNRESET"), "{answer}");
    // A socket file without a listener is no better.
    drop(UnixListener::bind(guest.directory.path().join(format!("{SOCKET}_98"))).unwrap());
    let answer = guest.shell(&format!("{PROGRAM} send 98 1 1"));
    assert!(answer.starts_with("Error: ECONNRESET"), "{answer}");
}

fn no_connect_line(guest: &mut Guest) {
    for line in [
        "HELLO 52\n",
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT -1\n",
        "\n",
    ] {
        assert_eq!(dial(guest, line).0, "", "{line:?}");
    }
    // Case and what follows the port do not matter.
    for line in ["connect 52\n", "CONNECT 52 please\n"] {
        assert!(dial(guest, line).0.starts_with("OK "), "{line:?}");
    }
}

/// Directions are the guest's. Whatever cases ran before, this one's echo is in the counts.
fn metrics(guest: &mut Guest) {
    const LENGTH: u64 = 10_000;
    let before = metrics_until_now(guest);
    echo(&mut connect(guest, ECHO), LENGTH, 5);
    let after = metrics_until_now(guest);
    let growth = |name| sum(&after, "vsock", name) - sum(&before, "vsock", name);
    for name in ["rx_bytes_count", "tx_bytes_count"] {
        assert!((LENGTH..2 * LENGTH).contains(&growth(name)), "{name}");
    }
    for name in ["rx_packets_count", "tx_packets_count"] {
        assert!(growth(name) >= 2, "{name}");
    }
    assert_eq!(growth("conns_added"), 1);
}
