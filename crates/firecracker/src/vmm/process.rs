//! A running VMM.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

use super::output::Output;
use super::{Exit, LaunchError, Version, VmmCommand, VmmEnd, launch};
use crate::{Client, Tail, readiness};

/// How long the output of a process that ended may be kept open by a process that it left behind.
const OUTPUT_BOUND: Duration = Duration::from_millis(200);

/// How long dropping a VMM waits for the process that it killed.
const DROP_BOUND: Duration = Duration::from_secs(1);

/// A running VMM process. It is killed when this is dropped, and by the kernel when this process dies.
///
/// To be launched in a tokio runtime, **from a thread that lives as long as the VMM should**: the kernel kills it
/// when that thread ends. In a current-thread runtime on the main thread that is the process. Nothing else in this
/// process may wait for children that are not its own, or the VMM's end stays unknown.
#[derive(Debug)]
pub struct Vmm {
    process: Arc<Process>,
    exit: Exit,
    output: Tail,
    pub(super) client: Client,
    pub(super) version: Version,
}

impl Vmm {
    /// Starts a VMM and waits until its API answers. If that fails, nothing of it is left running.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn launch(command: VmmCommand) -> Result<Self, LaunchError> {
        launch::launch(command).await
    }

    /// A VMM whose process was just started; its version is yet to be asked.
    pub(super) fn new(mut child: Child, command: &VmmCommand) -> io::Result<Self> {
        let output = Tail::default();
        let streams = (child.stdout.take(), child.stderr.take());
        let process = Arc::new(Process::new(child)?);
        let (sender, exit) = Exit::new();
        // From here on a failure drops `vmm`, which ends the process.
        let vmm = Self {
            client: Client::new(command.socket()).with_exit(exit.clone()),
            process: Arc::clone(&process),
            exit,
            output: output.clone(),
            version: Version {
                major: 0,
                minor: 0,
                patch: 0,
            },
        };
        let mut outputs = Vec::new();
        if let (Some(stdout), Some(stderr)) = streams {
            outputs.push(Output::new(
                stdout,
                "stdout",
                output.clone(),
                command.log_output,
            )?);
            outputs.push(Output::new(
                stderr,
                "stderr",
                output.clone(),
                command.log_output,
            )?);
        }
        let ended = readiness::readable(process.pidfd.try_clone()?)?;
        tokio::spawn(follow(
            process,
            ended,
            outputs,
            output,
            command.log.clone(),
            sender,
        ));
        Ok(vmm)
    }

    /// The process' id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Speaks with this VMM; knows when its process ends.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The VMM's version.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Waits for the process' end. Any number can wait, also after this is dropped.
    pub fn exited(&self) -> impl Future<Output = VmmEnd> + Send + 'static {
        let exit = self.exit.clone();
        async move { exit.wait().await }
    }

    /// How the process ended, if it did.
    #[must_use]
    pub fn end(&self) -> Option<VmmEnd> {
        self.exit.now()
    }

    /// The last lines of the process' output, the guest's console among them; oldest first.
    #[must_use]
    pub fn console(&self) -> Vec<String> {
        self.output.lines()
    }

    /// The same, shared: outlives this.
    #[must_use]
    pub fn console_tail(&self) -> Tail {
        self.output.clone()
    }

    /// Ends the process: SIGTERM, and SIGKILL if it is still there after `grace`.
    pub async fn stop(&self, grace: Duration) -> VmmEnd {
        self.process.signal(Signal::TERM);
        if let Ok(end) = timeout(grace, self.exit.wait()).await {
            return end;
        }
        self.kill();
        self.exit.wait().await
    }

    /// Kills the process (SIGKILL) without waiting for its end.
    pub fn kill(&self) {
        self.process.signal(Signal::KILL);
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.process.kill_and_reap();
    }
}

/// A child process and a file descriptor that means it whatever happens to its id.
#[derive(Debug)]
struct Process {
    pid: u32,
    pidfd: OwnedFd,
    child: Mutex<Child>,
}

impl Process {
    fn new(mut child: Child) -> io::Result<Self> {
        let pid = child.id();
        let open = || {
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let raw = raw.ok_or(io::ErrorKind::InvalidInput)?;
            // The child is not reaped yet, so that the id is still its own.
            Ok(pidfd_open(raw, PidfdFlags::empty())?)
        };
        match open() {
            Ok(pidfd) => Ok(Self {
                pid,
                pidfd,
                child: Mutex::new(child),
            }),
            Err(error) => {
                // It must not stay; the first error is the one to report.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // Fails only for a process that has ended, which is what signals are for here.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// The exit status of a process that has ended. The first call takes it from the kernel, later ones repeat it.
    fn status(&self) -> io::Result<Option<ExitStatus>> {
        self.child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_wait()
    }

    /// Kills the process and waits, blocking, until it is gone: nobody else may be left to do it.
    fn kill_and_reap(&self) {
        if matches!(self.status(), Ok(Some(_))) {
            return;
        }
        self.signal(Signal::KILL);
        let bound = Timespec::try_from(DROP_BOUND).ok();
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // A process that survives this is the kernel's problem, and its parent's at the end.
        let _ = rustix::event::poll(&mut ended, bound.as_ref());
        let _ = self.status();
    }
}

/// Follows a process to its end, and tells `sender`.
async fn follow(
    process: Arc<Process>,
    ended: AsyncFd<OwnedFd>,
    outputs: Vec<Output>,
    tail: Tail,
    log: Option<Tail>,
    sender: watch::Sender<Option<VmmEnd>>,
) {
    let mut drains = tokio::task::JoinSet::new();
    for output in outputs {
        drains.spawn(output.drain());
    }
    let status = loop {
        // A pidfd is readable once its process has ended.
        match ended.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            // Only a runtime that shuts down refuses, and then nobody waits.
            Err(_) => return,
        }
        match process.status() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(error) => {
                tracing::error!(pid = process.pid, %error, "Cannot learn how the VMM ended");
                return;
            }
        }
    };
    // The last words are still in the pipes.
    let all_read = async { while drains.join_next().await.is_some() {} };
    let _ = timeout(OUTPUT_BOUND, all_read).await;
    let end = VmmEnd {
        status,
        last_output: tail.lines(),
        last_log: log.map(|log| log.lines()).unwrap_or_default(),
    };
    // Nobody may be waiting.
    let _ = sender.send(Some(end));
}
