//! A containerd of our own: the machine's binary with its own root, state and
//! socket below one directory, so that nothing installed is touched.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Longest Unix socket path, without the closing zero.
const SUN_PATH_MAX: usize = 107;
/// How long containerd may take to open its socket or to end.
const BOUND: Duration = Duration::from_secs(120);

/// Why a private containerd could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// The directory's path leaves no room for the sockets in it.
    #[error(
        "The path {path} makes Unix socket names longer than {SUN_PATH_MAX} bytes; choose a shorter directory"
    )]
    PathTooLong {
        /// The socket's path.
        path: PathBuf,
    },
    /// A file below the directory could not be written.
    #[error("Cannot set up {path}")]
    Setup {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program could not be started.
    #[error("Cannot run {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// containerd ended, or did not open its socket in time.
    #[error("{program} did not come up; the end of its log {log}:\n{tail}")]
    NotUp {
        /// The program.
        program: PathBuf,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// A `ctr` command failed.
    #[error("ctr {args} failed ({status}): {stderr}")]
    Ctr {
        /// Its arguments.
        args: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
}

/// What a private containerd is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory that holds everything; created when missing.
    pub dir: PathBuf,
    /// Directory with `containerd` and `ctr`; `None`: found in `PATH`.
    pub prefix: Option<PathBuf>,
    /// Directory with our binaries, put first in containerd's `PATH`.
    pub bin_dir: PathBuf,
    /// The shim's configuration file, handed over by environment variable.
    pub runtime_config: PathBuf,
    /// More text for containerd's configuration file.
    pub extra_config: String,
}

/// A running private containerd. Dropping it ends the daemon; its root stays.
#[derive(Debug)]
pub struct Containerd {
    options: Options,
    child: Child,
}

impl Containerd {
    /// Starts containerd and waits until its socket accepts.
    ///
    /// # Errors
    /// The directory cannot be used, or containerd does not come up within two minutes.
    pub fn start(options: Options) -> Result<Self, ContainerdError> {
        let dir = &options.dir;
        let longest = dir.join("containerd.sock.ttrpc");
        if longest.as_os_str().len() > SUN_PATH_MAX {
            return Err(ContainerdError::PathTooLong { path: longest });
        }
        let setup = |path: &Path| {
            let path = path.to_owned();
            move |source| ContainerdError::Setup { path, source }
        };
        fs::create_dir_all(dir).map_err(setup(dir))?;
        let config = dir.join("containerd.toml");
        fs::write(&config, config_text(&options)).map_err(setup(&config))?;
        let log_path = dir.join("containerd.log");
        let log = File::create(&log_path).map_err(setup(&log_path))?;
        let log2 = log.try_clone().map_err(setup(&log_path))?;
        let socket = dir.join("containerd.sock");
        // A socket of an earlier run would look like readiness.
        match fs::remove_file(&socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(setup(&socket)(e)),
            _ => {}
        }
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .and_then(|fd| {
                inotify::add_watch(&fd, dir, inotify::WatchFlags::CREATE)?;
                Ok(fd)
            })
            .map_err(|e| setup(dir)(e.into()))?;
        let program = program(&options, "containerd");
        let child = Command::new(&program)
            .arg("--config")
            .arg(&config)
            .env("PATH", path_with(&options))
            .env(
                "FIRECRACKER_CONTAINERD_RUNTIME_CONFIG_PATH",
                &options.runtime_config,
            )
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log2)
            // Its own group, so that a Ctrl-C on the terminal reaches ctr only.
            .process_group(0)
            .spawn()
            .map_err(|source| ContainerdError::Spawn {
                program: program.clone(),
                source,
            })?;
        let mut this = Self { options, child };
        if this.wait_for_socket(&watch, &socket) {
            return Ok(this);
        }
        Err(ContainerdError::NotUp {
            program,
            tail: tail(&log_path, 10),
            log: log_path,
        })
    }

    /// Waits for `socket` to accept, woken by new files in its directory and by containerd's end.
    fn wait_for_socket(&mut self, watch: &rustix::fd::OwnedFd, socket: &Path) -> bool {
        let deadline = Instant::now() + BOUND;
        let Ok(pidfd) = pidfd_open(pid_of(&self.child), PidfdFlags::empty()) else {
            return false;
        };
        loop {
            if UnixStream::connect(socket).is_ok() {
                return true;
            }
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return false;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            // containerd binds and listens in two steps: look again soon after the file appeared.
            let left = if socket.exists() {
                Duration::from_millis(5)
            } else {
                left
            };
            let mut fds = [
                PollFd::new(watch, PollFlags::IN),
                PollFd::new(&pidfd, PollFlags::IN),
            ];
            let timeout = Timespec::try_from(left).ok();
            if poll(&mut fds, timeout.as_ref()).is_err() {
                return false;
            }
            let mut buf = [0_u8; 4096];
            while rustix::io::read(watch, &mut buf).is_ok_and(|n| n > 0) {}
        }
    }

    /// The gRPC socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.options.dir.join("containerd.sock")
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.options.dir.join("containerd.log")
    }

    /// A `ctr` command for this instance; the caller adds the arguments.
    #[must_use]
    pub fn ctr(&self) -> Command {
        let mut command = Command::new(program(&self.options, "ctr"));
        command.arg("--address").arg(self.socket());
        command
    }

    /// Runs `ctr` and returns what it printed on stdout.
    ///
    /// # Errors
    /// It cannot be started or ends with another status than 0.
    pub fn ctr_ok(&self, args: &[&str]) -> Result<String, ContainerdError> {
        let output = self.ctr_output(args)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(ContainerdError::Ctr {
            args: args.join(" "),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// Runs `ctr` with empty stdin and returns status and output, whatever they are.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ctr_output(&self, args: &[&str]) -> Result<Output, ContainerdError> {
        self.ctr()
            .args(args)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| ContainerdError::Spawn {
                program: program(&self.options, "ctr"),
                source,
            })
    }

    /// Imports an image tar unless an image of that name is there.
    ///
    /// # Errors
    /// `ctr` fails.
    pub fn import(&self, name: &str, tar: &Path) -> Result<(), ContainerdError> {
        if self.has_image(name)? {
            return Ok(());
        }
        let tar = tar.to_string_lossy();
        self.ctr_ok(&["image", "import", &tar]).map(drop)
    }

    /// Whether an image of that name is there.
    ///
    /// # Errors
    /// `ctr` fails.
    pub fn has_image(&self, name: &str) -> Result<bool, ContainerdError> {
        let list = self.ctr_ok(&["image", "ls", "-q"])?;
        Ok(list.lines().any(|line| line == name))
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the daemon as a crash would (SIGKILL) and starts it again on the same directory.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn crash_and_restart(mut self) -> Result<Self, ContainerdError> {
        let options = self.options.clone();
        // The process may have ended by itself already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        Self::start(options)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = pid_of(&self.child);
        // Nothing can be reported from here; a daemon that is gone already is fine.
        let _ = kill_process(pid, Signal::TERM);
        if let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) {
            let timeout = Timespec::try_from(BOUND).ok();
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn program(options: &Options, name: &str) -> PathBuf {
    options
        .prefix
        .as_ref()
        .map_or_else(|| PathBuf::from(name), |prefix| prefix.join(name))
}

fn path_with(options: &Options) -> std::ffi::OsString {
    let mut dirs = vec![options.bin_dir.clone()];
    dirs.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    std::env::join_paths(dirs).unwrap_or_else(|_| options.bin_dir.clone().into())
}

/// Everything containerd would put elsewhere is kept below `dir`; plugins that
/// nothing here uses are off, so that they neither fail nor look at the machine.
fn config_text(options: &Options) -> String {
    let dir = options.dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
{extra}"#,
        extra = options.extra_config
    )
}

/// The last `lines` lines of a log file.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
