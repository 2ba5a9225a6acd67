//! Bytes on the API socket of firecracker-tcg, through HTTP and JSON to a VM that is not started, and an answer.
//!
//! Requests name files. So that none of the host's are opened or made, the server's thread has a root directory of
//! its own, which only root can give it.

#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use fc_tcg::api::Server;
use fc_tcg::controller::Controller;
use libfuzzer_sys::fuzz_target;
use nix::sched::{CloneFlags, unshare};
use tokio::sync::Mutex;

/// Longest body that is taken, and longest metadata, in bytes.
const LIMIT: usize = 4096;

/// Bound on an answer: one that takes longer is a hang.
const BOUND: Duration = Duration::from_secs(10);

struct Running {
    socket: PathBuf,
    controller: Arc<Mutex<Controller>>,
}

fn new_vm() -> Controller {
    // Nobody waits for the end of a guest that never starts.
    let (ended, _) = tokio::sync::mpsc::channel(1);
    let metadata = fc_tcg::mmds::Mmds::new(LIMIT);
    Controller::new("fuzz".into(), metadata, fc_tcg::tsc::Mark::now(), ended)
}

fn start() -> Running {
    let directory = tempfile::tempdir().expect("a temporary directory").keep();
    std::fs::write(directory.join("file"), [0; 512]).expect("a file in it");
    let socket = directory.join("api.sock");
    let controller = Arc::new(Mutex::new(new_vm()));
    let served = Arc::clone(&controller);
    let (ready, is_ready) = mpsc::channel();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS).expect("a root directory of its own for a thread");
        nix::unistd::chroot(&directory).expect("root may change the root directory");
        std::env::set_current_dir("/").expect("a root directory");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let server = Server::bind("/api.sock".as_ref(), LIMIT).expect("a socket");
            ready.send(()).expect("the fuzzer waits");
            match server.run(served).await {}
        })
    });
    is_ready.recv().expect("the server starts");
    Running { socket, controller }
}

fuzz_target!(|input: &[u8]| {
    static RUNNING: OnceLock<Running> = OnceLock::new();
    let running = RUNNING.get_or_init(start);
    *running.controller.blocking_lock() = new_vm();
    let mut stream = UnixStream::connect(&running.socket).expect("the server listens");
    stream.set_read_timeout(Some(BOUND)).expect("a timeout");
    // The server may hang up before all is said.
    if stream.write_all(input).is_ok() {
        drop(stream.shutdown(Shutdown::Write));
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1."),
        "{}",
        answer.escape_ascii()
    );
    assert!(
        !answer.starts_with(b"HTTP/1.1 5"),
        "{}",
        answer.escape_ascii()
    );
});
