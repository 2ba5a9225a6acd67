//! What `firecracker-tcg` promises of its own vsock device: at least half the speed of a drive.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use fc_conformance::initrd::PROGRAM;

use crate::running::Guest;
use crate::{OnGuest, drives, file, vsock};

/// For the VMM that promises it; elsewhere vsock may be what it is.
pub const CASES: &[(&str, OnGuest)] = &[("speed::vsock_against_a_drive", vsock_against_drive)];

/// Bytes moved at a time.
const SIZE: usize = 24 << 20;

/// Measurements of each kind, in turns, and most of them. The best ones are compared, for what else the host does only
/// slows them; on a busy host it takes more of them until each kind had its chance.
const ROUNDS: std::ops::RangeInclusive<usize> = 3..=12;

/// What vsock must reach of a drive's speed. A debug build, whose device is slower and whose drives, which are QEMU's,
/// are not, must reach less; it does two thirds on a quiet machine.
const SHARE: f64 = if cfg!(debug_assertions) { 0.3 } else { 0.5 };

fn vsock_against_drive(guest: &mut Guest) {
    file(guest.directory.path(), "large", SIZE, b'L');
    drives::patch(guest, "ro", "large");
    drives::wait_for_sectors(guest, "vdb", SIZE as u64 / 512);
    let mut best = [f64::MIN; 3];
    for round in 1..=*ROUNDS.end() {
        guest.shell("echo 3 > /proc/sys/vm/drop_caches");
        let drive = guest.shell(&format!("{PROGRAM} time-read /dev/vdb {SIZE}"));
        let measured = [drive, receive(guest), transmit(guest)];
        for (best, text) in best.iter_mut().zip(measured) {
            let time: u32 = text.parse().unwrap_or_else(|_| panic!("{text}"));
            *best = best.max(SIZE as f64 / f64::from(time));
        }
        let [drive, to_guest, from_guest] = best;
        if ROUNDS.contains(&round) && to_guest.min(from_guest) >= drive * SHARE {
            break;
        }
    }
    let [drive, to_guest, from_guest] = best;
    println!("MB/s: drive {drive:.0}, vsock to the guest {to_guest:.0}, from it {from_guest:.0}");
    assert!(
        to_guest.min(from_guest) >= drive * SHARE,
        "vsock does less than {SHARE} of what a drive does"
    );
    drives::attach_image(guest);
}

/// Listens on a port of the host for one connection, and runs the guest's side of it.
fn on_host_port(
    guest: &mut Guest,
    command: &str,
    serve: impl FnOnce(std::os::unix::net::UnixStream) -> std::io::Result<()> + Send + 'static,
) -> String {
    const PORT: u32 = 2000;
    let path = guest
        .directory
        .path()
        .join(format!("{}_{PORT}", vsock::SOCKET));
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || serve(listener.accept()?.0));
    let answer = guest.shell(&format!("{PROGRAM} {command} {PORT} {SIZE}"));
    server.join().unwrap().unwrap();
    std::fs::remove_file(path).unwrap();
    answer
}

fn receive(guest: &mut Guest) -> String {
    on_host_port(guest, "time-receive", |mut stream| {
        stream.write_all(&vec![b'V'; SIZE])
    })
}

fn transmit(guest: &mut Guest) -> String {
    on_host_port(guest, "time-transmit", |mut stream| {
        let mut buffer = vec![0; 256 << 10];
        let mut left = SIZE;
        while left > 0 {
            match stream.read(&mut buffer)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => left -= read,
            }
        }
        stream.write_all(&[0])
    })
}
