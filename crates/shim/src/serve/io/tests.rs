//! Streams between real FIFOs and a stand-in for the VMM's vsock sockets.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    ports: Ports,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vsock = dir.path().join("v");
        let bind = vsock.clone();
        let listen = move |port| fc_vsock::Listener::bind(&bind, port);
        let ports = Ports::new(vsock, Some(Box::new(listen)));
        Self { dir, ports }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        path.display().to_string()
    }

    async fn guest_connects(&self, port: u32) -> UnixStream {
        UnixStream::connect(self.path(&format!("v_{port}")))
            .await
            .unwrap()
    }
}

fn reader(path: &Path) -> std::thread::JoinHandle<Vec<u8>> {
    let mut file = std::fs::File::open(path).unwrap();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        all
    })
}

#[tokio::test]
async fn output_is_complete_and_ends() {
    let fixture = Fixture::new();
    let stdio = Stdio {
        stdout: fixture.fifo("out"),
        stderr: format!("file://{}", fixture.path("err").display()),
        ..Stdio::default()
    };
    let prepared = Prepared::new(&stdio, &fixture.ports).unwrap();
    let [stdin, stdout, stderr] = prepared.ports;
    assert_eq!((stdin, stdout, stderr), (0, 11001, 11002));
    let io = prepared.start(|| {});
    let client = reader(&fixture.path("out"));
    let mut out = fixture.guest_connects(stdout).await;
    let mut err = fixture.guest_connects(stderr).await;
    let data: Vec<u8> = (0..8 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
    out.write_all(&data).await.unwrap();
    err.write_all(b"oops").await.unwrap();
    out.shutdown().await.unwrap();
    drop(err);
    // The host's close says that everything arrived.
    assert_eq!(out.read(&mut [0]).await.unwrap(), 0);
    io.finish().await;
    assert!(client.join().unwrap() == data);
    assert_eq!(std::fs::read(fixture.path("err")).unwrap(), b"oops");
    assert!(!fixture.path("v_11001").exists());
}

/// Streams of a process with a stdout, the guest's end of it, and the FIFO's path.
async fn with_stdout(fixture: &Fixture) -> (ProcessIo, UnixStream, PathBuf) {
    let stdio = Stdio {
        stdout: fixture.fifo("out"),
        ..Stdio::default()
    };
    let prepared = Prepared::new(&stdio, &fixture.ports).unwrap();
    let port = prepared.ports[1];
    let io = prepared.start(|| {});
    let guest = fixture.guest_connects(port).await;
    (io, guest, fixture.path("out"))
}

fn open_to_read(path: &Path) -> std::fs::File {
    let mut options = std::fs::OpenOptions::new();
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    options.read(true).custom_flags(nonblocking);
    options.open(path).unwrap()
}

/// Reads five bytes as they come.
async fn read_five(client: &mut std::fs::File) -> [u8; 5] {
    let mut said = [0; 5];
    let mut count = 0;
    while count < said.len() {
        match client.read(&mut said[count..]) {
            Ok(more) => count += more,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    said
}

/// Waits until the end may be told, which must come; answers whether everything was read.
async fn finished(delivery: &Delivery) -> bool {
    let finished = tokio::time::timeout(Duration::from_secs(60), delivery.finished_in_time()).await;
    finished.expect("the end of the waiting")
}

#[tokio::test]
async fn output_that_nobody_reads_is_given_up() {
    let fixture = Fixture::new();
    let (io, mut guest, _) = with_stdout(&fixture).await;
    let writer = tokio::spawn(async move { guest.write_all(&[7; 2 << 20]).await });
    io.process_ended(None);
    assert!(!finished(&io.delivery()).await);
    io.finish().await;
    assert!(writer.await.unwrap().is_err());
}

/// What fits the FIFO is no reason to wait for a reader. (For a moment there can be one: a process that another test is
/// just starting has a copy of the FIFO's descriptor.)
#[tokio::test]
async fn little_output_that_nobody_reads_is_not_waited_for() {
    let fixture = Fixture::new();
    let (io, mut guest, _) = with_stdout(&fixture).await;
    guest.write_all(b"hello").await.unwrap();
    drop(guest);
    io.process_ended(None);
    let begin = tokio::time::Instant::now();
    io.delivery().finished().await;
    assert!(begin.elapsed() < delivery::READER_BOUND);
}

/// A client may close its end when it learns of the process's: not before it has read everything.
#[tokio::test]
async fn the_end_waits_for_a_slow_reader() {
    let fixture = Fixture::new();
    let (io, mut guest, out) = with_stdout(&fixture).await;
    let mut client = open_to_read(&out);
    let data: Vec<u8> = (0..300_000).map(|i: u32| i.to_le_bytes()[1]).collect();
    io.process_ended(None);
    guest.write_all(&data).await.unwrap();
    drop(guest);
    let delivery = io.delivery();
    let slow = async {
        let mut read = Vec::<u8>::new();
        let mut buffer = [0; 30_000];
        while read.len() < data.len() {
            tokio::time::sleep(Duration::from_millis(30)).await;
            if let Ok(count) = client.read(&mut buffer) {
                read.extend(&buffer[..count]);
            }
        }
        read
    };
    let mut finished = std::pin::pin!(finished(&delivery));
    let read = tokio::select! {
        biased;
        read = slow => read,
        _ = &mut finished => panic!("the end was told before all was read"),
    };
    assert!(read == data);
    assert!(finished.await);
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "the FIFO is closed");
}

/// A child that lives on may hold the stream.
#[tokio::test]
async fn a_stream_that_stays_open_does_not_hide_the_end() {
    let fixture = Fixture::new();
    let (io, mut guest, out) = with_stdout(&fixture).await;
    let mut client = open_to_read(&out);
    guest.write_all(b"hello").await.unwrap();
    assert_eq!(read_five(&mut client).await, *b"hello");
    io.process_ended(None);
    assert!(!finished(&io.delivery()).await);
    // It may speak still.
    guest.write_all(b"!").await.unwrap();
    drop(guest);
    rustix::fs::fcntl_setfl(&client, rustix::fs::OFlags::empty()).unwrap();
    let rest = std::thread::spawn(move || {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        rest
    });
    io.finish().await;
    assert_eq!(rest.join().unwrap(), b"!");
}

/// A starved guest sends late what it has.
#[tokio::test]
async fn what_the_guest_says_it_owes_is_waited_for() {
    let fixture = Fixture::new();
    let (io, mut guest, out) = with_stdout(&fixture).await;
    let mut client = open_to_read(&out);
    guest.write_all(b"he").await.unwrap();
    io.process_ended(Some([5, 0]));
    let delivery = io.delivery();
    let mut told = std::pin::pin!(delivery.finished());
    let late = tokio::time::timeout(Duration::from_secs(1), &mut told).await;
    assert!(late.is_err(), "the end was told before all was said");
    guest.write_all(b"llo").await.unwrap();
    assert_eq!(read_five(&mut client).await, *b"hello");
    told.await;
    assert!(finished(&delivery).await);
}

/// What a child that lives on says after the end does not put off the end.
#[tokio::test]
async fn later_output_does_not_put_off_the_end() {
    let fixture = Fixture::new();
    let (io, mut guest, out) = with_stdout(&fixture).await;
    let client = reader(&out);
    guest.write_all(b"hello").await.unwrap();
    io.process_ended(Some([5, 0]));
    let delivery = io.delivery();
    let chatter = async {
        while guest.write_all(&[b'.'; 4096]).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = delivery.finished() => {}
        () = chatter => panic!("the stream broke"),
    }
    assert!(finished(&delivery).await);
    drop(io);
    let read = tokio::task::spawn_blocking(|| client.join().unwrap());
    assert!(read.await.unwrap().starts_with(b"hello"));
}

/// A guest may claim anything.
#[tokio::test]
async fn what_a_guest_owes_is_bounded() {
    let fixture = Fixture::new();
    let (io, mut guest, out) = with_stdout(&fixture).await;
    let client = reader(&out);
    io.process_ended(Some([u64::MAX, u64::MAX]));
    guest.write_all(&vec![7; 5 << 20]).await.unwrap();
    assert!(
        finished(&io.delivery()).await,
        "5 MiB are more than any buffers hold"
    );
    drop(guest);
    drop(io);
    let read = tokio::task::spawn_blocking(|| client.join().unwrap());
    assert!(read.await.unwrap().len() >= 4 << 20);
}

/// More than a FIFO and a Unix socket hold; the guest gets rid of it before anybody reads.
#[tokio::test]
async fn what_an_ended_process_said_waits_for_a_stalled_reader() {
    let fixture = Fixture::new();
    let (io, mut guest, out) = with_stdout(&fixture).await;
    let mut stalled = open_to_read(&out);
    let data: Vec<u8> = (0..500_000).map(|i: u32| i.to_le_bytes()[1]).collect();
    let (all, ()) = tokio::join!(guest.write_all(&data), async {
        tokio::task::yield_now().await;
        io.process_ended(None);
    });
    all.unwrap();
    drop(guest);
    let client = reader(&out);
    io.finish().await;
    let mut read = client.join().unwrap();
    stalled.read_to_end(&mut read).unwrap();
    assert!(read == data);
}

#[tokio::test]
async fn stdin_ends_with_its_last_writer_or_with_close() {
    for close in [false, true] {
        let fixture = Fixture::new();
        let stdio = Stdio {
            stdin: fixture.fifo("in"),
            ..Stdio::default()
        };
        let prepared = Prepared::new(&stdio, &fixture.ports).unwrap();
        let port = prepared.ports[0];
        let io = prepared.start(|| {});
        let mut guest = fixture.guest_connects(port).await;
        let mut client = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(0)
            .open(fixture.path("in"))
            .unwrap();
        client.write_all(b"hello").unwrap();
        if close {
            io.close_stdin();
        } else {
            drop(client);
        }
        let mut got = Vec::new();
        guest.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"hello");
    }
}

#[tokio::test]
async fn a_terminal_waits_for_the_next_client() {
    let fixture = Fixture::new();
    let stdio = Stdio {
        stdin: fixture.fifo("in"),
        terminal: true,
        ..Stdio::default()
    };
    let prepared = Prepared::new(&stdio, &fixture.ports).unwrap();
    let port = prepared.ports[0];
    let _io = prepared.start(|| {});
    let mut guest = fixture.guest_connects(port).await;
    for word in [b"one", b"two"] {
        let path = fixture.path("in");
        let mut client = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        client.write_all(word).unwrap();
        drop(client);
        let mut got = [0; 3];
        guest.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, word);
    }
}

#[test]
fn a_logging_binary_is_refused_by_name() {
    let error = target::Output::open("binary:///bin/logger?x=y")
        .err()
        .unwrap();
    assert!(error.is_unsupported());
    assert!(error.to_string().contains("binary:///bin/logger"));
}
