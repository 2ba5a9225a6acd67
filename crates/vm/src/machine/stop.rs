//! The end of a VM.

use std::time::Duration;

use fc_client::api::InstanceState;

use super::{GuestError, Machine};

/// How long a killed VMM may take to end.
const KILL_BOUND: Duration = Duration::from_secs(5);

/// Why a VM did not end as asked.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The agent could not be asked, or refused; the VMM was killed.
    #[error("The guest could not be asked to shut down, so its VMM was killed")]
    Guest(#[from] GuestError),
    /// A paused guest cannot be asked anything; the VMM was killed.
    #[error("The VM is paused, so its VMM was killed")]
    Paused,
    /// The guest did not end in time; the VMM was killed.
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
    /// Ends the VM: asks the agent, unless the VM is paused, waits for the VMM's end at most `bound`, else kills the VMM.
    ///
    /// # Errors
    /// Why it had to be killed; the VM has ended all the same, except for [`StopError::Unkillable`].
    pub async fn stop(&self, bound: Duration) -> Result<(), StopError> {
        let graceful = async {
            // A VMM that does not answer is no reason not to ask the guest.
            let info = self.vmm.client().describe_instance().await;
            if info.is_ok_and(|info| info.state == InstanceState::Paused) {
                return Err(StopError::Paused);
            }
            self.guest.shut_down(bound).await?;
            self.vmm.exited().await;
            Ok(())
        };
        let result = tokio::select! {
            biased;
            // A VMM that is gone needs no answer of its guest.
            _ = self.vmm.exited() => return Ok(()),
            result = tokio::time::timeout(bound, graceful) => {
                result.unwrap_or(Err(StopError::TimedOut(bound)))
            }
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) => self.kill().await.and(Err(error)),
        }
    }

    /// Kills the VMM and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&self) -> Result<(), StopError> {
        self.vmm.kill();
        match tokio::time::timeout(KILL_BOUND, self.vmm.exited()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(StopError::Unkillable {
                pid: self.vmm.pid(),
            }),
        }
    }
}
