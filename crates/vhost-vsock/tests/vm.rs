//! The device with a real QEMU and a real Linux guest. One VM serves all checks.

#[path = "support/pattern.rs"]
mod pattern;
#[path = "support/ports.rs"]
mod ports;
#[path = "support/vm.rs"]
mod vm;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use fc_vhost_vsock::DeviceEnd;
use pattern::Pattern;
use rustix::process::{Resource, Rlimit};
use vm::{Vm, read_line, readable_within};

const MIB: u64 = 1024 * 1024;

type Check = fn(&Vm);

#[test]
fn a_guest_and_its_host_talk() {
    let mut vm = match Vm::boot() {
        Ok(vm) => vm,
        Err(why) => return println!("SKIPPED: {why}"),
    };
    let checks: [(&str, Check); 15] = [
        ("throughput", throughput),
        ("refused port", refused_port),
        ("bad connect lines", bad_connect_lines),
        (
            "connect line in pieces, data behind it",
            connect_line_in_pieces,
        ),
        ("to the guest", to_the_guest),
        ("from the guest", from_the_guest),
        ("guest connects to the host", guest_connects),
        ("half-close by the guest", half_close_by_guest),
        ("stalled readers resume", stalled_readers_resume),
        ("gone in the middle", gone_in_the_middle),
        ("200 connections at once", many_at_once),
        ("2000 connections at once", thousands_at_once),
        ("paused and resumed", paused_and_resumed),
        ("latency", latency),
        ("idle", idle),
    ];
    for (name, check) in checks {
        let start = Instant::now();
        check(&vm);
        println!("{name}: {:.2} s", start.elapsed().as_secs_f64());
    }

    let device = vm.device.take().expect("device");
    assert_eq!(device.end(), None);
    vm.kill();
    assert!(readable_within(&device, Duration::from_secs(120)));
    assert_eq!(device.end(), Some(DeviceEnd::Disconnected));
}

/// Sends a pattern to a sink that may already be reading, and checks its answer.
fn fill_sink(mut stream: UnixStream, len: u64, seed: u64) {
    writeln!(stream, "{seed}").expect("seed");
    Pattern::new(seed).send(&mut stream, len).expect("send");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    assert_eq!(answer, format!("{len}\n"));
}

/// Takes a pattern from a source to its end.
fn drain_source(mut stream: UnixStream, len: u64, seed: u64) {
    writeln!(stream, "{len} {seed}").expect("request");
    let received = Pattern::new(seed).check(&mut stream).expect("data");
    assert_eq!(received, len);
}

fn refused_port(vm: &Vm) {
    for _ in 0..20 {
        let mut stream = UnixStream::connect(vm.uds_path()).expect("connect");
        stream.write_all(b"CONNECT 4711\n").expect("CONNECT");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("end");
        assert_eq!(answer, b"");
    }
}

fn bad_connect_lines(vm: &Vm) {
    let lines: [&[u8]; 4] = [b"HELLO\n", b"CONNECT x\n", &[b'C'; 100], b"CONNECT 7"];
    for line in lines {
        let mut stream = UnixStream::connect(vm.uds_path()).expect("connect");
        stream.write_all(line).expect("line");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let mut answer = Vec::new();
        // Closing with unread bytes resets.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"", "{line:?}");
    }
}

fn connect_line_in_pieces(vm: &Vm) {
    let mut stream = UnixStream::connect(vm.uds_path()).expect("connect");
    for byte in format!("CONNECT {}", ports::ECHO).bytes() {
        stream.write_all(&[byte]).expect("byte");
    }
    stream.write_all(b"\nhello").expect("rest");
    assert!(read_line(&mut stream).starts_with("OK "));
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).expect("echo");
    assert_eq!(&echo, b"hello");
}

fn to_the_guest(vm: &Vm) {
    for len in [
        0,
        1,
        4095,
        4096,
        4097,
        65_536,
        65_537,
        300_000,
        MIB,
        100 * MIB,
    ] {
        fill_sink(vm.connect(ports::SINK), len, len % 97);
    }
}

fn from_the_guest(vm: &Vm) {
    for len in [0, 1, 4096, 60_000, 65_536, 65_537, 300_000, MIB, 100 * MIB] {
        drain_source(vm.connect(ports::SOURCE), len, len % 89);
    }
}

fn guest_connects(vm: &Vm) {
    let ask = |port, len, seed| {
        let mut control = vm.connect(ports::CONNECT_OUT);
        writeln!(control, "{port} {len} {seed}").expect("request");
        control
    };
    assert_eq!(read_line(&mut ask(5999, 1, 1)), "ConnectionReset");

    let listener = vm.listen(6000);
    for (len, seed) in [(0, 1), (1, 2), (100_000, 3), (20 * MIB, 4)] {
        let mut control = ask(6000, len, seed);
        let (mut stream, _) = listener.accept().expect("accept");
        let received = Pattern::new(seed).check(&mut stream).expect("data");
        assert_eq!(received, len);
        Pattern::new(seed + 1).send(&mut stream, len).expect("send");
        drop(stream);
        assert_eq!(read_line(&mut control), len.to_string());
    }
    drop(listener);
    assert_eq!(read_line(&mut ask(6000, 1, 1)), "ConnectionReset");
}

fn half_close_by_guest(vm: &Vm) {
    let report = vm.listen(ports::HALF_CLOSE_REPORT);
    let mut stream = vm.connect(ports::HALF_CLOSE);
    let mut bye = String::new();
    stream.read_to_string(&mut bye).expect("bye");
    assert_eq!(bye, "bye");
    Pattern::new(1).send(&mut stream, 3 * MIB).expect("send");
    drop(stream);
    let (mut answer, _) = report.accept().expect("report");
    assert_eq!(read_line(&mut answer), (3 * MIB).to_string());
}

fn stalled_readers_resume(vm: &Vm) {
    std::thread::scope(|scope| {
        // The guest reads nothing until released.
        let held = vm.connect(ports::HELD_SINK);
        let writer = scope.spawn(|| fill_sink(held, 8 * MIB, 5));
        // This host program reads nothing for a while.
        let mut stalled = vm.connect(ports::SOURCE);
        let len = 8 * MIB;
        writeln!(stalled, "{len} 6").expect("request");
        // Others are not held up by either.
        fill_sink(vm.connect(ports::SINK), 2 * MIB, 7);
        drain_source(vm.connect(ports::SOURCE), 2 * MIB, 8);
        assert!(!writer.is_finished());
        let received = Pattern::new(6).check(&mut stalled).expect("data");
        assert_eq!(received, len);
        drop(vm.connect(ports::RELEASE));
    });
}

fn gone_in_the_middle(vm: &Vm) {
    for _ in 0..50 {
        let mut source = vm.connect(ports::SOURCE);
        writeln!(source, "{} 1", 100 * MIB).expect("request");
        let mut some = [0; 1000];
        source.read_exact(&mut some).expect("data");
        drop(source);
        let mut closed = vm.connect(ports::CLOSE_AT_ONCE);
        let mut nothing = Vec::new();
        closed.read_to_end(&mut nothing).expect("end");
        assert_eq!(nothing, b"");
    }
    drain_source(vm.connect(ports::SOURCE), MIB, 9);
}

fn many_at_once(vm: &Vm) {
    let open: Vec<_> = (0..200).map(|_| vm.connect(ports::ECHO)).collect();
    std::thread::scope(|scope| {
        for (seed, stream) in (0..).zip(open) {
            scope.spawn(move || {
                let mut writer = stream.try_clone().expect("clone");
                let len = 256 * 1024;
                let sender = std::thread::spawn(move || {
                    Pattern::new(seed).send(&mut writer, len).expect("send");
                    writer.shutdown(Shutdown::Write).expect("shutdown");
                });
                let received = Pattern::new(seed).check(&mut &stream).expect("echo");
                assert_eq!(received, len);
                sender.join().expect("sender");
            });
        }
    });
}

fn thousands_at_once(vm: &Vm) {
    // Two descriptors each are in this process; the test's own limit may be 1024.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(Resource::Nofile, raised).expect("RLIMIT_NOFILE");
    if limit.maximum.is_some_and(|maximum| maximum < 5000) {
        return println!("SKIPPED: no more than {:?} open files", limit.maximum);
    }
    let mut open: Vec<_> = (0..2000).map(|_| vm.connect(ports::ECHO)).collect();
    for (seed, stream) in (0..).zip(&mut open) {
        Pattern::new(seed).send(stream, 3000).expect("send");
    }
    for (seed, stream) in (0..).zip(&mut open) {
        let received = Pattern::new(seed).check_up_to(stream, 3000).expect("echo");
        assert_eq!(received, 3000);
    }
}

fn paused_and_resumed(vm: &Vm) {
    let len = 30 * MIB;
    std::thread::scope(|scope| {
        let (to, from) = (vm.connect(ports::SINK), vm.connect(ports::SOURCE));
        let writer = scope.spawn(move || fill_sink(to, len, 3));
        let reader = scope.spawn(move || drain_source(from, len, 4));
        for _ in 0..5 {
            vm.qmp("stop");
            std::thread::sleep(Duration::from_millis(20));
            vm.qmp("cont");
            std::thread::sleep(Duration::from_millis(30));
        }
        writer.join().expect("writer");
        reader.join().expect("reader");
    });
}

/// Both directions move data at least half as fast as the guest reads its disk.
///
/// A machine that is busy with other things gets several chances.
fn throughput(vm: &Vm) {
    for _ in 0..6 {
        let [disk, to_guest, from_guest] = rates(vm);
        println!(
            "  virtio-blk {disk:.0} MiB/s, host to guest {to_guest:.0} MiB/s, guest to host {from_guest:.0} MiB/s"
        );
        if to_guest.min(from_guest) >= disk / 2.0 {
            return;
        }
    }
    panic!("vsock is less than half as fast as the disk");
}

/// Rates in MiB/s: reading the disk, to the guest, from the guest.
///
/// Short rounds take turns and their medians count, so that what else the machine does meanwhile meets all three
/// alike.
fn rates(vm: &Vm) -> [f64; 3] {
    const ROUNDS: usize = 15;
    let len = vm::DISK_LEN as u64;
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        times[0].push(timed(|| {
            let read = read_line(&mut vm.connect(ports::READ_DISK));
            assert_eq!(read, len.to_string());
        }));
        times[1].push(timed(|| send_zeroes(vm.connect(ports::DISCARD), len)));
        times[2].push(timed(|| take_zeroes(vm.connect(ports::ZEROES), len)));
    }
    times.map(|times| rate(len, times))
}

fn timed(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

/// What the median of `times` for `len` bytes is in MiB/s.
fn rate(len: u64, mut times: Vec<Duration>) -> f64 {
    times.sort();
    let mib = f64::from(u32::try_from(len / MIB).expect("MiB"));
    mib / times[times.len() / 2].as_secs_f64()
}

fn send_zeroes(mut stream: UnixStream, len: u64) {
    let piece = vec![0; 1 << 20];
    for _ in 0..len / MIB {
        stream.write_all(&piece).expect("send");
    }
    stream.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(read_line(&mut stream), len.to_string());
}

fn take_zeroes(mut stream: UnixStream, len: u64) {
    writeln!(stream, "{len}").expect("request");
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    while total < len {
        match stream.read(&mut buffer).expect("data") {
            0 => panic!("the end after {total} bytes"),
            some => total += some as u64,
        }
    }
}

fn latency(vm: &Vm) {
    let mut connects: Vec<_> = (0..200)
        .map(|_| {
            let start = Instant::now();
            drop(vm.connect(ports::CLOSE_AT_ONCE));
            start.elapsed()
        })
        .collect();
    let mut stream = vm.connect(ports::ECHO);
    let mut trips: Vec<_> = (0..500)
        .map(|_| {
            let start = Instant::now();
            let mut byte = [1];
            stream.write_all(&byte).expect("byte");
            stream.read_exact(&mut byte).expect("echo");
            start.elapsed()
        })
        .collect();
    connects.sort();
    trips.sort();
    println!(
        "  connect {:?}, round trip {:?} (medians)",
        connects[connects.len() / 2],
        trips[trips.len() / 2]
    );
}

/// An open connection without traffic costs no CPU time.
///
/// A guest that the machine leaves little time may still be busy with connections that were closed before; what costs
/// something without traffic does so in each of these spans.
fn idle(vm: &Vm) {
    const SPANS: usize = 10;
    let open: Vec<_> = (0..50).map(|_| vm.connect(ports::ECHO)).collect();
    for _ in 0..SPANS {
        let before = vm.cpu_time();
        std::thread::sleep(Duration::from_secs(3));
        let after = vm.cpu_time();
        let (ours, qemu) = (after.0 - before.0, after.1 - before.1);
        println!("  CPU time in 3 s: this process {ours:?}, QEMU {qemu:?}");
        if ours <= Duration::from_millis(20) {
            return drop(open);
        }
    }
    panic!("connections without traffic cost CPU time");
}
