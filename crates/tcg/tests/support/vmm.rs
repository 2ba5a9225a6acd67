//! A `firecracker-tcg` process in a directory of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Name of the API's socket in the VMM's directory.
pub const SOCKET: &str = "api.socket";

/// Bound on anything that VMM or guest are waited for. It catches what never comes, and no more: a guest boots in two
/// seconds on a quiet machine, and in more than a minute on one where twenty processes want each processor.
pub const BOUND: Duration = Duration::from_secs(300);

pub struct Vmm {
    child: Child,
    stdin: ChildStdin,
    console: Receiver<String>,
    /// Everything the guest has printed so far.
    pub seen: Vec<String>,
    directory: PathBuf,
}

impl Vmm {
    pub fn command() -> Command {
        Command::new(env!("CARGO_BIN_EXE_firecracker-tcg"))
    }

    /// Starts the program with `directory` as working directory, and waits until its API answers.
    pub fn start(directory: &Path) -> Self {
        Self::start_with(directory, |_| ())
    }

    pub fn start_with(directory: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Self::command();
        prepare(&mut command);
        Self::start_in(directory, command)
    }

    /// Starts `command`, which is the program in some wrapping, in `directory`.
    pub fn start_in(directory: &Path, mut command: Command) -> Self {
        command
            .args([
                "--api-sock",
                SOCKET,
                "--id",
                "test-vm",
                "--log-path",
                "log",
                "--level",
                "Debug",
            ])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (lines, console) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if lines.send(line).is_err() {
                    break;
                }
            }
        });
        let mut vmm = Self {
            child,
            stdin,
            console,
            seen: Vec::new(),
            directory: directory.to_owned(),
        };
        let deadline = Instant::now() + BOUND;
        while UnixStream::connect(directory.join(SOCKET)).is_err() {
            let ended = vmm.child.try_wait().unwrap();
            assert_eq!(ended, None, "no API; log:\n{}", vmm.log());
            assert!(Instant::now() < deadline, "the API socket did not appear");
            std::thread::sleep(Duration::from_millis(5));
        }
        vmm
    }

    /// Sends a request; an empty `body` is none. Returns status and body, as text if it is not JSON.
    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.directory.join(SOCKET)).unwrap();
        stream.set_read_timeout(Some(BOUND)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (
            status,
            if body.is_empty() {
                Value::Null
            } else {
                serde_json::from_str(body).unwrap_or_else(|_| body.into())
            },
        )
    }

    /// Sends a request that must succeed.
    pub fn ok(&self, method: &str, path: &str, body: &Value) {
        let (status, answer) = self.request(method, path, &body.to_string());
        assert_eq!(status, 204, "{method} {path}: {answer}");
    }

    /// Sends a request that must fail, and returns its fault message.
    pub fn fault(&self, method: &str, path: &str, body: &Value) -> String {
        let (status, answer) = self.request(method, path, &body.to_string());
        assert_eq!(status, 400, "{method} {path}: {answer}");
        answer["fault_message"].as_str().unwrap().to_owned()
    }

    pub fn put_drive(&self, id: &str, path: &str, root: bool, read_only: bool) {
        let body = json!({
            "drive_id": id, "path_on_host": path, "is_root_device": root, "is_read_only": read_only,
        });
        self.ok("PUT", &format!("/drives/{id}"), &body);
    }

    pub fn patch_drive(&self, id: &str, path: &str) {
        self.ok(
            "PATCH",
            &format!("/drives/{id}"),
            &json!({ "drive_id": id, "path_on_host": path }),
        );
    }

    pub fn action(&self, action: &str) {
        self.ok("PUT", "/actions", &json!({ "action_type": action }));
    }

    /// Waits for a console line that contains `text`.
    pub fn wait_line(&mut self, text: &str) -> String {
        let deadline = Instant::now() + BOUND;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.console.recv_timeout(rest) else {
                panic!(
                    "no {text:?} on the console:\n{}\nlog:\n{}",
                    self.seen.join("\n"),
                    self.log()
                );
            };
            self.seen.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Has the guest run a shell command and waits for no answer: it may end the guest before it could give one.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    /// Runs a shell command in the guest and returns what it printed, line ends as blanks.
    pub fn shell(&mut self, command: &str) -> String {
        let script = format!("echo \"@<$({command})>@\" | tr '\\n' ' '; echo");
        writeln!(self.stdin, "{script}").unwrap();
        let line = self.wait_line(">@");
        let (_, text) = line.split_once("@<").unwrap_or_else(|| panic!("{line}"));
        let (text, _) = text.rsplit_once(">@").unwrap_or((text, ""));
        text.trim().to_owned()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Process id of the QEMU child, if there is one.
    pub fn qemu(&self) -> Option<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        std::fs::read_to_string(path)
            .ok()?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the process's end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "still running; log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
