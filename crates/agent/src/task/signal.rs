//! Kill, Pause and Resume.

use std::sync::Arc;

use fc_proto::containerd::events::task::{TaskPaused, TaskResumed};
use nix::errno::Errno;

use super::Tasks;
use super::error::TaskError;
use super::exec::expect;
use super::process::{Phase, Process};
use crate::events::topic;

/// The signal that cannot be caught.
pub(super) const SIGKILL: u32 = libc::SIGKILL.unsigned_abs();

impl Tasks {
    /// Sends a signal to one process, or to all of a container.
    pub(super) async fn kill(
        &self,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), TaskError> {
        let (_, process) = self.process(id, exec_id)?;
        if !(all && exec_id.is_empty()) {
            return self.kill_process(&process, signal);
        }
        if process.state().exit.is_some() {
            return Err(TaskError::Finished);
        }
        Ok(self.env.runtime.kill_all(id, signal).await?)
    }

    /// Sends a signal to a process.
    pub(super) fn kill_process(&self, process: &Process, signal: u32) -> Result<(), TaskError> {
        let state = process.state();
        if state.exit.is_some() {
            return Err(TaskError::Finished);
        }
        let pid = state.pid.ok_or(TaskError::State {
            action: "signal",
            state: state.phase.as_str(),
        })?;
        // Out of the range of an int it is no signal either.
        let number = i32::try_from(signal).unwrap_or(i32::MAX);
        match self.env.reaper.kill(pid, number) {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(TaskError::Finished),
            Err(source) => Err(TaskError::Signal { signal, source }),
        }
    }

    /// Freezes a container.
    pub(super) async fn pause(self: &Arc<Self>, id: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let _changing = container.init.changes.lock().await;
        expect(&container.init, "pause", Phase::Running)?;
        self.env.runtime.pause(id).await?;
        container.init.enter(Phase::Paused);
        let mut event = TaskPaused::new();
        event.container_id = id.to_owned();
        self.env
            .events
            .publish(&container.namespace, topic::PAUSED, &event);
        Ok(())
    }

    /// Undoes [`pause`](Self::pause).
    pub(super) async fn resume(self: &Arc<Self>, id: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let _changing = container.init.changes.lock().await;
        expect(&container.init, "resume", Phase::Paused)?;
        self.env.runtime.resume(id).await?;
        container.init.enter(Phase::Running);
        let mut event = TaskResumed::new();
        event.container_id = id.to_owned();
        self.env
            .events
            .publish(&container.namespace, topic::RESUMED, &event);
        Ok(())
    }
}
