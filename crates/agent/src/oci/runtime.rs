//! Runs the OCI runtime's commands.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use super::console::{ConsoleError, ConsoleSocket};
use super::error::RuntimeError;
use super::scratch::{Scratch, last_error, read_pid};
use crate::fd::{Fd, pipe};
use crate::reaper::{Reaper, Watched};
use crate::stdio::{ChildEnds, Connections, Plumbing};

/// Runtimes that are looked for, best first: crun is smaller and starts several times faster.
const KNOWN: [&str; 2] = ["crun", "runc"];
/// Longest output that is read from a command.
const MAX_OUTPUT: usize = 1 << 20;
/// Bound on a terminal's arrival after the command's success.
const TERMINAL_BOUND: Duration = Duration::from_secs(10);

/// The OCI runtime.
#[derive(Debug)]
pub struct Runtime {
    program: PathBuf,
    global: Vec<String>,
    root: PathBuf,
    scratch: PathBuf,
    reaper: Reaper,
    calls: AtomicU64,
}

/// What to start: a container or a process in one.
#[derive(Debug, Clone, Copy)]
pub enum Launch<'a> {
    /// `create`, from the bundle in this directory.
    Container {
        /// Holds `config.json`.
        bundle: &'a Path,
    },
    /// `exec`, of the process that this JSON describes.
    Process {
        /// An OCI `Process`.
        spec: &'a [u8],
    },
}

/// A process that the runtime has started.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub process: Watched,
    /// Its streams; copying has not started.
    pub plumbing: Plumbing,
    /// Its terminal, if it has one.
    pub terminal: Option<Fd>,
}

impl Runtime {
    /// The runtime `program` (a name or a path; none: the first known one found), keeping its
    /// state and its files below `dir`, which must exist. `global` arguments come first in each
    /// command.
    ///
    /// # Errors
    /// When it is not found.
    pub fn new(
        program: Option<PathBuf>,
        global: Vec<String>,
        dir: &Path,
        reaper: Reaper,
    ) -> Result<Self, RuntimeError> {
        let wanted: Vec<PathBuf> = match program {
            Some(program) => vec![program],
            None => KNOWN.map(PathBuf::from).to_vec(),
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = wanted.iter().find_map(|name| look_up(name, &path));
        let program = found.ok_or_else(|| {
            let names: Vec<_> = wanted.iter().map(|n| n.display().to_string()).collect();
            RuntimeError::NotFound(names.join(", "), path.display().to_string())
        })?;
        Ok(Self {
            program,
            global,
            root: dir.join("oci"),
            scratch: dir.to_owned(),
            reaper,
            calls: AtomicU64::new(0),
        })
    }

    /// Starts what `launch` says in container `id` and returns when it is there: a container's
    /// init then waits for [`start`](Self::start), a process runs.
    ///
    /// # Errors
    /// The runtime's message; nothing is left of a container then.
    pub async fn launch(
        &self,
        id: &str,
        launch: Launch<'_>,
        terminal: bool,
        connections: Connections,
    ) -> Result<Started, RuntimeError> {
        let result = self.try_launch(id, launch, terminal, connections).await;
        if result.is_err() && matches!(launch, Launch::Container { .. }) {
            // It may have failed half way, also after the runtime's own success. There may also
            // be nothing to delete, so the answer does not matter.
            let _ = self.delete(id).await;
        }
        result
    }

    async fn try_launch(
        &self,
        id: &str,
        launch: Launch<'_>,
        terminal: bool,
        connections: Connections,
    ) -> Result<Started, RuntimeError> {
        let files = self.scratch_files();
        let mut command = self.command(&files);
        let name = match launch {
            Launch::Container { bundle } => {
                command.arg("create").arg("--bundle").arg(bundle);
                "create"
            }
            Launch::Process { spec } => {
                let path = files.path("process");
                fs::write(&path, spec).map_err(|source| RuntimeError::File {
                    path: path.clone(),
                    source,
                })?;
                command.args(["exec", "--detach", "--process"]).arg(path);
                "exec"
            }
        };
        let pid_file = files.path("pid");
        command.arg("--pid-file").arg(&pid_file);
        // The process may end before its id is read.
        let window = self.reaper.window();
        let (plumbing, terminal) = if terminal {
            let socket = ConsoleSocket::bind(files.path("console"))?;
            command.arg("--console-socket").arg(socket.path()).arg(id);
            self.stdio(&mut command, ChildEnds::default());
            let run = self.run(name, command, &files);
            // The runtime waits for our acceptance, so both must be waited for at once.
            let mut run = std::pin::pin!(run);
            let mut receive = std::pin::pin!(socket.receive());
            let received = tokio::select! {
                received = &mut receive => {
                    run.await?;
                    received?
                }
                ran = &mut run => {
                    ran?;
                    // It has been sent by now, unless the spec says that there is none.
                    timeout(TERMINAL_BOUND, receive)
                        .await
                        .unwrap_or(Err(ConsoleError::NoTerminal))?
                }
            };
            let plumbing = Plumbing::terminal(connections, &received);
            (plumbing.map_err(|e| self.spawn_error(e))?, Some(received))
        } else {
            let (plumbing, child) =
                Plumbing::pipes(connections).map_err(|e| self.spawn_error(e))?;
            command.arg(id);
            self.stdio(&mut command, child);
            self.run(name, command, &files).await?;
            (plumbing, None)
        };
        Ok(Started {
            process: window.claim(read_pid(pid_file)?),
            plumbing,
            terminal,
        })
    }

    /// Lets a created container's init go.
    ///
    /// # Errors
    /// The runtime's message.
    pub async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.simple("start", &["start", id]).await
    }

    /// Removes a container, killing what is left of it.
    ///
    /// # Errors
    /// The runtime's message.
    pub async fn delete(&self, id: &str) -> Result<(), RuntimeError> {
        self.simple("delete", &["delete", "--force", id]).await
    }

    /// Sends a signal to all of a container's processes.
    ///
    /// # Errors
    /// The runtime's message.
    pub async fn kill_all(&self, id: &str, signal: u32) -> Result<(), RuntimeError> {
        self.simple("kill", &["kill", "--all", id, &signal.to_string()])
            .await
    }

    /// Freezes all of a container's processes.
    ///
    /// # Errors
    /// The runtime's message.
    pub async fn pause(&self, id: &str) -> Result<(), RuntimeError> {
        self.simple("pause", &["pause", id]).await
    }

    /// Undoes [`pause`](Self::pause).
    ///
    /// # Errors
    /// The runtime's message.
    pub async fn resume(&self, id: &str) -> Result<(), RuntimeError> {
        self.simple("resume", &["resume", id]).await
    }

    /// Changes a container's limits; `resources` is JSON, an OCI `LinuxResources`.
    ///
    /// # Errors
    /// The runtime's message.
    pub async fn update(&self, id: &str, resources: &[u8]) -> Result<(), RuntimeError> {
        let files = self.scratch_files();
        let path = files.path("resources");
        fs::write(&path, resources).map_err(|source| RuntimeError::File {
            path: path.clone(),
            source,
        })?;
        let mut command = self.command(&files);
        command.args(["update", "--resources"]).arg(path).arg(id);
        self.stdio(&mut command, ChildEnds::default());
        self.run("update", command, &files).await
    }

    /// Ids of a container's processes, as this machine counts them.
    ///
    /// # Errors
    /// The runtime's message.
    pub async fn pids(&self, id: &str) -> Result<Vec<u32>, RuntimeError> {
        let files = self.scratch_files();
        let mut command = self.command(&files);
        command.args(["ps", "--format", "json", id]);
        let (read, write) = pipe().map_err(|e| self.spawn_error(e))?;
        let read = Fd::new(read).map_err(|e| self.spawn_error(e))?;
        let child = ChildEnds {
            stdout: Some(write),
            ..ChildEnds::default()
        };
        self.stdio(&mut command, child);
        let (ran, output) = tokio::join!(self.run("ps", command, &files), read_all(&read));
        ran?;
        let output = output.map_err(|e| self.spawn_error(e))?;
        // runc prints "null" when there are none.
        let pids: Option<Vec<u32>> =
            serde_json::from_slice(&output).map_err(|source| RuntimeError::Answer {
                command: "ps",
                source,
            })?;
        Ok(pids.unwrap_or_default())
    }

    async fn simple(&self, name: &'static str, args: &[&str]) -> Result<(), RuntimeError> {
        let files = self.scratch_files();
        let mut command = self.command(&files);
        command.args(args);
        self.stdio(&mut command, ChildEnds::default());
        self.run(name, command, &files).await
    }

    fn command(&self, files: &Scratch) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.global)
            .arg("--root")
            .arg(&self.root)
            .arg("--log")
            .arg(files.path("log"))
            .args(["--log-format", "json"]);
        command
    }

    fn stdio(&self, command: &mut Command, ends: ChildEnds) {
        let stdio = |end: Option<OwnedFd>| end.map_or_else(Stdio::null, Stdio::from);
        command
            .stdin(stdio(ends.stdin))
            .stdout(stdio(ends.stdout))
            .stderr(stdio(ends.stderr));
    }

    /// Runs a command to its end. Takes it by value: our copies of the process's ends of its
    /// pipes must be closed, or their end is never seen.
    async fn run(
        &self,
        name: &'static str,
        mut command: Command,
        files: &Scratch,
    ) -> Result<(), RuntimeError> {
        let spawned = self.reaper.spawn(&mut command);
        drop(command);
        let (_child, mut watched) = spawned.map_err(|e| self.spawn_error(e))?;
        let exit = watched.exited().await;
        if exit.status == 0 {
            return Ok(());
        }
        let message = last_error(&files.path("log")).unwrap_or_else(|| {
            format!(
                "it ended with status {} and no message (does {} run in this guest?)",
                exit.status,
                self.program.display()
            )
        });
        Err(RuntimeError::Failed {
            command: name,
            message,
        })
    }

    fn spawn_error(&self, source: io::Error) -> RuntimeError {
        RuntimeError::Spawn {
            program: self.program.clone(),
            source,
        }
    }

    fn scratch_files(&self) -> Scratch {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        Scratch::new(self.scratch.join(format!("call-{call}")))
    }
}

fn look_up(program: &Path, path: &OsStr) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    std::env::split_paths(path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

async fn read_all(fd: &Fd) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match fd.read(&mut buffer).await? {
            0 => return Ok(output),
            _ if output.len() > MAX_OUTPUT => return Err(io::ErrorKind::FileTooLarge.into()),
            count => output.extend_from_slice(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_path_or_by_path() {
        assert!(look_up(Path::new("sh"), OsStr::new("/nowhere:/bin")).is_some());
        assert!(look_up(Path::new("/bin/sh"), OsStr::new("")).is_some());
        assert!(look_up(Path::new("no-such"), OsStr::new("/bin")).is_none());
    }
}
