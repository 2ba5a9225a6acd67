//! A running VMM.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::timeout;

use super::output::Output;
use super::process::Process;
use super::{Exit, LaunchError, StartedVmm, StopError, Version, VmmCommand, VmmEnd, launch};
use crate::{Client, FifoTail, Tail, readiness};

/// How long dropping a VMM waits for the process that it killed.
pub(super) const DROP_BOUND: Duration = KILL_BOUND;

/// How long a killed process may take to end. It takes milliseconds, unless the kernel cannot let go of it.
const KILL_BOUND: Duration = Duration::from_secs(15);

/// A running VMM process. It is killed when this is dropped; one that was launched here is also killed by the kernel
/// when this process dies.
///
/// To be launched in a tokio runtime, **from a thread that lives as long as the VMM should**: the kernel kills it
/// when that thread ends. In a current-thread runtime on the main thread that is the process. If something else in
/// this process waits for children that are not its own, the VMM's exit status is lost to it.
#[derive(Debug)]
pub struct Vmm {
    process: Arc<Process>,
    exit: Exit,
    output: Tail,
    client: Client,
    version: Version,
}

impl Vmm {
    /// Starts a VMM and waits until its API answers. If that fails, nothing of it is left running.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn launch(command: VmmCommand) -> Result<Self, LaunchError> {
        launch::launch(command).await
    }

    /// Takes over a VMM that somebody else starts, such as an OCI runtime that puts it into a jail, and waits until
    /// its API answers. From here on the process is this object's: it is killed if that fails, and in the end.
    ///
    /// The exit status is known if the process is this one's child. One whose parent exited is, if this process is
    /// a subreaper (`PR_SET_CHILD_SUBREAPER`) and an ancestor of it. The kernel does not kill it when this process
    /// dies: whoever finds its traces has to.
    ///
    /// # Errors
    /// [`LaunchError`].
    pub async fn attach(started: StartedVmm) -> Result<Self, LaunchError> {
        launch::attach(started).await
    }

    /// A VMM whose process runs; its version is yet to be asked.
    pub(super) fn new(process: Process, started: StartedVmm) -> io::Result<Self> {
        let process = Arc::new(process);
        let output = started.output;
        let (sender, exit) = Exit::new();
        // From here on a failure drops `vmm`, which ends the process.
        let vmm = Self {
            client: Client::new(started.api_socket).with_exit(exit.clone()),
            process: Arc::clone(&process),
            exit,
            output: output.clone(),
            version: Version::default(),
        };
        let streams = [(started.stdout, "stdout"), (started.stderr, "stderr")];
        let streams = streams
            .into_iter()
            .filter_map(|(stream, name)| Some((stream?, name)));
        let written = Output::read(streams, &output, started.log_output)?;
        let ended = readiness::readable(process.ended()?)?;
        let end = async move {
            // A pidfd is readable once its process has ended; only a runtime that shuts down refuses to wait for it.
            let status = loop {
                ended.readable().await.ok()?.clear_ready();
                if let Some(status) = process.exit() {
                    break status;
                }
            };
            written.finish().await;
            Some(VmmEnd {
                status,
                last_output: output.lines(),
                last_log: started
                    .log
                    .as_ref()
                    .map(FifoTail::lines)
                    .unwrap_or_default(),
            })
        };
        tokio::spawn(tell(end, sender));
        Ok(vmm)
    }

    /// Notes the version that the VMM told.
    pub(super) fn with_version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// The process' id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
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
    ///
    /// # Errors
    /// [`StopError`] if it is still there 15 s after that.
    pub async fn stop(&self, grace: Duration) -> Result<VmmEnd, StopError> {
        self.process.signal(Signal::TERM);
        if let Ok(end) = timeout(grace, self.exit.wait()).await {
            return Ok(end);
        }
        self.kill();
        let end = timeout(KILL_BOUND, self.exit.wait()).await;
        end.map_err(|_| StopError::Unkillable { pid: self.pid() })
    }

    /// Kills the process (SIGKILL) without waiting for its end.
    pub fn kill(&self) {
        self.process.signal(Signal::KILL);
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.process.kill_and_reap(DROP_BOUND);
    }
}

/// Tells the end to whoever waits for it, once it is there.
async fn tell(end: impl Future<Output = Option<VmmEnd>>, sender: watch::Sender<Option<VmmEnd>>) {
    let end = end.await;
    // Nobody may be waiting.
    let _ = sender.send(end);
}
