//! One process that the host knows: a container's init, or a further one (exec).

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::unistd::Pid;
use tokio::sync::watch;

use super::error::TaskError;
use crate::fd::Fd;
use crate::reaper::Exit;
use crate::stdio::{Connections, ProcessIo, Written};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Described; a container's init exists already, waiting.
    Created,
    /// Running.
    Running,
    /// Frozen with its container.
    Paused,
    /// Ended.
    Stopped,
    /// Forgotten.
    Deleted,
}

impl Phase {
    /// For messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created but not started",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }
}

/// What is known of a process.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// Where it is in its life.
    pub phase: Phase,
    /// Its id; none before it exists.
    pub pid: Option<Pid>,
    /// How it ended, once it has.
    pub exit: Option<Exit>,
    /// What it had written by its end.
    pub written: Written,
}

/// Where the caller wants the streams; these are the host's business, kept to be told again.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    /// Of stdin; empty: none wanted. The others likewise.
    pub stdin: String,
    /// Of stdout.
    pub stdout: String,
    /// Of stderr.
    pub stderr: String,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Empty for a container's init.
    pub exec_id: String,
    /// Whether it has a terminal instead of pipes.
    pub terminal: bool,
    /// As the caller gave them.
    pub paths: Paths,
    /// Serializes what changes the process. Its end is announced under this lock, so that it
    /// comes after the announcement of its start.
    pub changes: tokio::sync::Mutex<()>,
    state: watch::Sender<State>,
    streams: Mutex<Streams>,
}

#[derive(Debug, Default)]
struct Streams {
    /// An exec's, until it is started.
    plan: Option<Plan>,
    io: Option<ProcessIo>,
    console: Option<Fd>,
}

/// What starting an exec needs.
#[derive(Debug)]
pub struct Plan {
    /// An OCI `Process` as JSON.
    pub spec: Vec<u8>,
    /// Its streams.
    pub connections: Connections,
}

impl Process {
    /// A process that does not exist yet.
    #[must_use]
    pub fn new(exec_id: String, terminal: bool, paths: Paths) -> Self {
        Self {
            exec_id,
            terminal,
            paths,
            changes: tokio::sync::Mutex::default(),
            state: watch::Sender::new(State {
                phase: Phase::Created,
                pid: None,
                exit: None,
                written: Written::default(),
            }),
            streams: Mutex::default(),
        }
    }

    /// What is known now.
    #[must_use]
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Enters another phase.
    pub fn enter(&self, phase: Phase) {
        self.state.send_modify(|state| state.phase = phase);
    }

    /// The process exists now.
    pub fn launched(&self, pid: Pid, io: ProcessIo, console: Option<Fd>) {
        let mut streams = self.streams();
        streams.io = Some(io);
        streams.console = console;
        drop(streams);
        self.state.send_modify(|state| state.pid = Some(pid));
    }

    /// The process has ended.
    pub fn exited(&self, exit: Exit) {
        let written = self.with_io(ProcessIo::process_exited).unwrap_or_default();
        self.state.send_modify(|state| {
            state.phase = Phase::Stopped;
            state.exit = Some(exit);
            state.written = written;
        });
    }

    /// Waits for the process's end, which may have come long ago: how it ended and what it had written by then.
    pub async fn wait(&self) -> Option<(Exit, Written)> {
        let mut states = self.state.subscribe();
        let over = |state: &State| state.exit.is_some() || state.phase == Phase::Deleted;
        // Fails only without a sender, and `self` is one.
        let state = *states.wait_for(over).await.ok()?;
        Some((state.exit?, state.written))
    }

    /// Keeps what an exec will need.
    pub fn set_plan(&self, plan: Plan) {
        self.streams().plan = Some(plan);
    }

    /// Gives out what an exec needs, once.
    pub fn take_plan(&self) -> Option<Plan> {
        self.streams().plan.take()
    }

    /// The process is deleted: ends what its streams keep.
    pub fn delete(&self) {
        let mut streams = self.streams();
        streams.plan = None;
        streams.console = None;
        if let Some(io) = streams.io.take() {
            io.process_exited();
            io.release();
        }
        drop(streams);
        self.enter(Phase::Deleted);
    }

    /// Does something with the streams, if the process has been launched.
    pub fn with_io<T>(&self, work: impl FnOnce(&ProcessIo) -> T) -> Option<T> {
        self.streams().io.as_ref().map(work)
    }

    /// Sets the terminal's size in characters. No effect without a terminal.
    ///
    /// # Errors
    /// Those of ioctl(2), or a size beyond 65535.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), TaskError> {
        let streams = self.streams();
        let Some(console) = &streams.console else {
            return Ok(());
        };
        let side = |length: u32| {
            u16::try_from(length).map_err(|e| TaskError::Resize(std::io::Error::other(e)))
        };
        let size = nix::pty::Winsize {
            ws_row: side(height)?,
            ws_col: side(width)?,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        crate::oci::set_size(console, &size).map_err(TaskError::Resize)
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
