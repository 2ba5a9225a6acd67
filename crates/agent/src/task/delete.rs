//! Delete, of a container or a further process, and of everything at the agent's end.

use std::sync::Arc;

use fc_errors::chain;
use fc_proto::containerd::events::task::TaskDelete;
use protobuf::MessageField;

use super::create::blocking;
use super::error::TaskError;
use super::exec::number;
use super::process::{Phase, Process, State};
use super::signal::SIGKILL;
use super::{Container, Tasks};
use crate::events::{timestamp, topic};
use crate::say;

impl Tasks {
    /// Removes what is left of a container or process that does not run. Returns its last state.
    pub(super) async fn delete(
        self: &Arc<Self>,
        id: &str,
        exec_id: &str,
    ) -> Result<State, TaskError> {
        let (container, process) = self.process(id, exec_id)?;
        match process.state().phase {
            phase @ (Phase::Running | Phase::Paused) => {
                return Err(TaskError::State {
                    action: "delete",
                    state: phase.as_str(),
                });
            }
            // A container's init that waits for Start. Its end must be seen before the lock is
            // taken, which announcing the end needs.
            Phase::Created if process.state().pid.is_some() => {
                // It may just have ended by itself.
                let _ = self.kill_process(&process, SIGKILL);
                process.wait().await;
            }
            Phase::Created | Phase::Stopped | Phase::Deleted => {}
        }
        let _changing = process.changes.lock().await;
        let state = process.state();
        match state.phase {
            Phase::Deleted => return Err(TaskError::NoTask(id.to_owned())),
            // It was started meanwhile.
            Phase::Running | Phase::Paused => {
                return Err(TaskError::State {
                    action: "delete",
                    state: state.phase.as_str(),
                });
            }
            Phase::Created | Phase::Stopped => {}
        }
        if exec_id.is_empty() {
            self.delete_container(&container).await?;
        } else {
            container.execs().remove(exec_id);
        }
        process.delete();
        self.publish_delete(&container, &process, state);
        Ok(state)
    }

    async fn delete_container(&self, container: &Arc<Container>) -> Result<(), TaskError> {
        // Also kills what outlives init.
        self.env.runtime.delete(&container.id).await?;
        let bundle = Arc::clone(container);
        let failures = blocking(move || bundle.bundle.remove()).await;
        if !failures.is_empty() {
            // Stays listed, so that it can be tried again.
            return Err(TaskError::Cleanup(failures.join("; ")));
        }
        for exec in container.execs().values() {
            exec.delete();
        }
        self.containers().remove(&container.id);
        Ok(())
    }

    fn publish_delete(&self, container: &Container, process: &Process, state: State) {
        let mut event = TaskDelete::new();
        event.container_id.clone_from(&container.id);
        event.id.clone_from(&process.exec_id);
        event.pid = number(state.pid);
        if let Some(exit) = state.exit {
            event.exit_status = exit.status;
            event.exited_at = MessageField::some(timestamp(exit.at));
        }
        self.env
            .events
            .publish(&container.namespace, topic::DELETE, &event);
    }

    /// Kills and deletes all containers: the machine is about to go.
    pub async fn delete_all(self: &Arc<Self>) {
        let all: Vec<_> = self.containers().values().flatten().cloned().collect();
        for container in all {
            // It may have ended, or not run yet; deleting tells.
            let _ = self.env.runtime.kill_all(&container.id, SIGKILL).await;
            let _ = self.kill_process(&container.init, SIGKILL);
            container.init.wait().await;
            if let Err(error) = self.delete(&container.id, "").await {
                say!("Cannot delete {}: {}", container.id, chain(&error));
            }
        }
    }
}
