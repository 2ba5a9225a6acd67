//! The end of a VM.

use std::time::Duration;

use fc_client::Vmm;
use fc_client::api::InstanceState;

use super::{GuestError, Machine};

/// How long a killed VMM may take to end.
const KILL_BOUND: Duration = Duration::from_secs(15);
/// Longest time between SIGTERM and SIGKILL; a VMM ends at the first at once.
const TERM_GRACE: Duration = Duration::from_secs(1);

/// Why a VM did not end as asked.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The agent could not be asked, or refused; the VMM was ended by a signal.
    #[error("The guest could not be asked to shut down, so its VMM was killed")]
    Guest(#[from] GuestError),
    /// A paused guest cannot be asked anything; the VMM was killed.
    #[error("The VM is paused, so its VMM was killed")]
    Paused,
    /// The guest did not end in this time; the VMM was ended by a signal.
    #[error("The guest did not shut down within {0:?}, so its VMM was killed")]
    TimedOut(Duration),
    /// Not even the kill helped.
    #[error("The VMM (process {pid}) does not end after SIGKILL")]
    Unkillable {
        /// The VMM's process id.
        pid: u32,
    },
}

impl Machine {
    /// Ends the VM within `bound`: asks the agent and waits for the VMM's end; a VMM that is still there then gets
    /// SIGTERM and at last SIGKILL. For those the last quarter of the bound is kept, at most 1 s. That of a paused
    /// VM, whose guest cannot be asked, gets SIGKILL at once.
    ///
    /// # Errors
    /// Why signals were needed; the VM has ended all the same, except for [`StopError::Unkillable`].
    pub async fn stop(&self, bound: Duration) -> Result<(), StopError> {
        let graceful = async {
            // A VMM that does not answer is no reason not to ask the guest.
            let info = self.vmm.client().describe_instance().await;
            if info.is_ok_and(|info| info.state == InstanceState::Paused) {
                return Err(StopError::Paused);
            }
            self.guest.shut_down(bound).await?;
            Ok(())
        };
        let grace = TERM_GRACE.min(bound / 4);
        end(&self.vmm, graceful, bound - grace, grace).await
    }

    /// Kills the VMM and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&self) -> Result<(), StopError> {
        kill(&self.vmm).await
    }
}

/// Ends a VMM, whose guest `ask` asks to shut down: it has `patience` for that, and `grace` after a SIGTERM then.
async fn end(
    vmm: &Vmm,
    ask: impl Future<Output = Result<(), StopError>>,
    patience: Duration,
    grace: Duration,
) -> Result<(), StopError> {
    let asked = async {
        ask.await?;
        vmm.exited().await;
        Ok(())
    };
    let result = tokio::select! {
        biased;
        // A VMM that is gone needs no answer of its guest.
        _ = vmm.exited() => return Ok(()),
        result = tokio::time::timeout(patience, asked) => {
            result.unwrap_or(Err(StopError::TimedOut(patience)))
        }
    };
    let Err(error) = result else { return Ok(()) };
    match error {
        StopError::Paused => kill(vmm).await?,
        _ => {
            let ended = vmm.stop(grace).await;
            ended.map_err(
                |fc_client::StopError::Unkillable { pid }| StopError::Unkillable { pid },
            )?;
        }
    }
    Err(error)
}

async fn kill(vmm: &Vmm) -> Result<(), StopError> {
    vmm.kill();
    match tokio::time::timeout(KILL_BOUND, vmm.exited()).await {
        Ok(_) => Ok(()),
        Err(_) => Err(StopError::Unkillable { pid: vmm.pid() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, ExitStatus, Stdio};

    use fc_client::{ProcessExit, StartedVmm};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What `sh` does as a VMM that takes SIGTERM, and as one that does not.
    const ENDS: &str = "trap 'exit 7' TERM; echo; read line";
    const STAYS: &str = "trap '' TERM; echo; read line";
    /// What passes in a test.
    const SHORT: Duration = Duration::from_millis(100);
    /// What no test takes, however busy the machine is.
    const LONG: Duration = Duration::from_secs(120);

    /// Runs a script that says a line when it is ready, beside an API that answers a version. The child's input is
    /// open as long as the child is kept; the VMM is who waits for its end.
    async fn vmm(script: &str) -> (Vmm, Child) {
        let dir = tempfile::tempdir().unwrap();
        let api = dir.path().join("api");
        let listener = tokio::net::UnixListener::bind(&api).unwrap();
        let body = r#"{"app_name":"sh","id":"vm","state":"Running","vmm_version":"1.10.1","firecracker_version":"1.10.1"}"#;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let serve = async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        };
        let server = tokio::spawn(serve);
        let mut command = Command::new("sh");
        let command = command
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut ready = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut ready).unwrap();
        let vmm = Vmm::attach(StartedVmm::new("sh", child.id(), api)).await;
        server.abort();
        (vmm.unwrap(), child)
    }

    fn status(vmm: &Vmm) -> Option<ExitStatus> {
        match vmm.end()?.status {
            ProcessExit::Status(status) => Some(status),
            ProcessExit::Unknown => None,
        }
    }

    #[tokio::test]
    async fn a_guest_that_stays_ends_by_sigterm() {
        let (vmm, _child) = vmm(ENDS).await;
        let stopped = end(&vmm, std::future::pending(), SHORT, LONG).await;
        assert!(matches!(stopped, Err(StopError::TimedOut(SHORT))));
        assert_eq!(status(&vmm).and_then(|status| status.code()), Some(7));
    }

    #[tokio::test]
    async fn a_vmm_that_does_not_mind_sigterm_is_killed() {
        let (vmm, _child) = vmm(STAYS).await;
        let stopped = end(&vmm, async { Ok(()) }, SHORT, SHORT).await;
        assert!(matches!(stopped, Err(StopError::TimedOut(_))));
        assert_eq!(status(&vmm).and_then(|status| status.signal()), Some(9));
    }

    #[tokio::test]
    async fn a_paused_vm_is_killed_at_once() {
        let (vmm, _child) = vmm(ENDS).await;
        let stopped = end(&vmm, async { Err(StopError::Paused) }, LONG, LONG).await;
        assert!(matches!(stopped, Err(StopError::Paused)));
        assert_eq!(status(&vmm).and_then(|status| status.signal()), Some(9));
    }
}
