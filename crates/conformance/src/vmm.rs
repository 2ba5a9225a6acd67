//! A VMM's process in a directory of its own.

use std::io::{BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use crate::bound::bound;
use crate::http::{Answer, Connection};

/// Seconds that anything a guest does is waited for: emulated, on a machine where twenty processes may want each
/// processor.
const PATIENCE: u32 = 300;

/// Name of the API socket in the VMM's directory.
pub const SOCKET: &str = "api.sock";

/// A running VMM; dropping it kills it.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    stdin: ChildStdin,
    console: Receiver<String>,
    seen: Vec<String>,
    directory: PathBuf,
}

impl Vmm {
    /// Starts `binary` in `directory` with an API socket, an id and `args`; returns once the API accepts.
    ///
    /// # Panics
    /// It does not start, or no API appears.
    #[must_use]
    pub fn start(binary: &Path, directory: &Path, args: &[&str]) -> Self {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .expect("inotify is there");
        inotify::add_watch(&watch, directory, inotify::WatchFlags::CREATE)
            .expect("a directory can be watched");
        let vmm = Self::start_unready(binary, directory, &[&["--api-sock", SOCKET], args].concat());
        let deadline = Instant::now() + bound(PATIENCE);
        let mut buffer = [MaybeUninit::uninit(); 4096];
        while UnixStream::connect(directory.join(SOCKET)).is_err() {
            let ended = || panic!("no API socket; on the console:\n{}", vmm.seen.join("\n"));
            // Between its making and its listening a socket refuses: then there is no event to wait for.
            if !directory.join(SOCKET).exists() && !readable(&watch, deadline) {
                ended();
            }
            while inotify::Reader::new(&watch, &mut buffer).next().is_ok() {}
            if Instant::now() > deadline {
                ended();
            }
        }
        vmm
    }

    /// Starts `binary` in `directory` with these arguments and an id, and waits for nothing.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_unready(binary: &Path, directory: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(["--id", "conformance-1"]).args(args);
        command
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("Cannot start {}: {error}", binary.display()));
        let stdin = child.stdin.take().expect("it is a pipe");
        let stdout = child.stdout.take().expect("it is a pipe");
        let (lines, console) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            stdin,
            console,
            seen: Vec::new(),
            directory: directory.to_owned(),
        }
    }

    /// Where the VMM runs; relative paths in requests start here.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new connection to the API.
    #[must_use]
    pub fn connect(&self) -> Connection {
        Connection::open(&self.directory.join(SOCKET))
    }

    /// Sends a request on a connection of its own; `Null` is no body.
    #[must_use]
    pub fn request(&self, method: &str, path: &str, body: &Value) -> Answer {
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.connect().request(method, path, &text)
    }

    /// Asks for a value.
    ///
    /// # Panics
    /// There is none.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        let answer = self.request("GET", path, &Value::Null);
        assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
        answer.body
    }

    /// Sends a request that must be answered with 204 and nothing.
    ///
    /// # Panics
    /// It is not.
    pub fn accept(&self, method: &str, path: &str, body: &Value) {
        let answer = self.request(method, path, body);
        assert_eq!(
            (answer.status, &answer.body),
            (204, &Value::Null),
            "{method} {path} {body}: {answer:?}"
        );
    }

    /// Sends a request that must be refused with 400, and returns the reason.
    ///
    /// # Panics
    /// It is not refused so.
    #[must_use]
    pub fn refuse(&self, method: &str, path: &str, body: &Value) -> String {
        let answer = self.request(method, path, body);
        assert_eq!(answer.status, 400, "{method} {path} {body}: {answer:?}");
        let fault = answer.fault().to_owned();
        assert!(!fault.is_empty(), "{method} {path} {body}: {answer:?}");
        fault
    }

    /// `PUT /actions`, which must be accepted.
    ///
    /// # Panics
    /// It is not.
    pub fn action(&self, action_type: &str) {
        self.accept("PUT", "/actions", &json!({ "action_type": action_type }));
    }

    /// What `GET /` says of the VM.
    ///
    /// # Panics
    /// It says nothing.
    #[must_use]
    pub fn state(&self) -> String {
        let info = self.get("/");
        info["state"].as_str().expect("state is text").to_owned()
    }

    /// Waits for a line on the console that contains `text`.
    ///
    /// # Panics
    /// None comes.
    pub fn wait_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + bound(PATIENCE);
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.console.recv_timeout(rest) else {
                panic!("no {text:?} on the console:\n{}", self.seen.join("\n"));
            };
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Types a line on the console.
    ///
    /// # Panics
    /// The VMM takes none.
    pub fn type_line(&mut self, line: &str) {
        writeln!(self.stdin, "{line}")
            .unwrap_or_else(|error| panic!("Cannot write to the console: {error}"));
    }

    /// Whether nothing appears on the console for that long.
    pub fn is_silent(&mut self, time: Duration) -> bool {
        match self.console.recv_timeout(time) {
            Ok(line) => {
                self.seen.push(line);
                false
            }
            Err(_) => true,
        }
    }

    /// Runs a shell command in the suite's guest and returns what it printed, line ends as blanks.
    ///
    /// # Panics
    /// No answer comes.
    pub fn shell(&mut self, command: &str) -> String {
        self.type_line(&format!("echo \"@<$({command})>@\" | tr '\\n' ' '; echo"));
        let line = self.wait_line(">@");
        let (_, text) = line
            .split_once("@<")
            .unwrap_or_else(|| panic!("no answer: {line:?}"));
        let (text, _) = text.rsplit_once(">@").unwrap_or((text, ""));
        text.trim().to_owned()
    }

    /// Sends the process a signal.
    ///
    /// # Panics
    /// It has ended.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal)
            .expect("a child that was not waited for is there");
    }

    /// Waits for the process's end.
    ///
    /// # Panics
    /// It does not end.
    pub fn wait(&mut self) -> ExitStatus {
        let end = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())
            .expect("a child that was not waited for is there");
        assert!(
            readable(&end, Instant::now() + bound(PATIENCE)),
            "the VMM still runs; on its console:\n{}",
            self.seen.join("\n")
        );
        self.child.wait().expect("a child can be waited for")
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits until `fd` is readable; false if it is not by the deadline.
fn readable(fd: impl AsFd, deadline: Instant) -> bool {
    let rest = deadline.saturating_duration_since(Instant::now());
    let rest = Timespec::try_from(rest).expect("a bound is short");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&rest)).is_ok_and(|ready| ready > 0)
}
