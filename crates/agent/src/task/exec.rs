//! Start, and further processes (exec).

use std::collections::btree_map::Entry;
use std::sync::Arc;

use fc_proto::containerd::events::task::{TaskExecAdded, TaskExecStarted, TaskStart};
use fc_proto::task::api::ExecProcessRequest;
use nix::unistd::Pid;

use super::create::{extra_data, wanted_ports};
use super::error::TaskError;
use super::process::{Paths, Phase, Plan, Process};
use super::{Container, Tasks, id, monitor};
use crate::events::topic;
use crate::oci::{Launch, spec};
use crate::stdio::Pending;

impl Tasks {
    /// Starts a container's init or a described exec. Returns its process id.
    pub(super) async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, TaskError> {
        let (container, process) = self.process(id, exec_id)?;
        let _changing = process.changes.lock().await;
        let state = process.state();
        expect(&process, "start", Phase::Created)?;
        if !exec_id.is_empty() {
            return self.start_exec(&container, &process).await;
        }
        self.env.runtime.start(id).await?;
        process.enter(Phase::Running);
        let mut event = TaskStart::new();
        event.container_id = id.to_owned();
        event.pid = number(state.pid);
        self.env
            .events
            .publish(&container.namespace, topic::START, &event);
        Ok(event.pid)
    }

    async fn start_exec(
        self: &Arc<Self>,
        container: &Arc<Container>,
        process: &Arc<Process>,
    ) -> Result<u32, TaskError> {
        expect(&container.init, "execute in", Phase::Running)?;
        let Plan { spec, connections } = process.take_plan().ok_or(TaskError::State {
            action: "start again",
            state: "not startable: its first start failed",
        })?;
        let launch = Launch::Process { spec: &spec };
        let started = self
            .env
            .runtime
            .launch(&container.id, launch, process.terminal, connections)
            .await?;
        let pid = started.process.pid();
        let io = started.plumbing.start(&self.env.streams);
        process.launched(pid, io, started.terminal);
        process.enter(Phase::Running);
        let mut event = TaskExecStarted::new();
        event.container_id.clone_from(&container.id);
        event.exec_id.clone_from(&process.exec_id);
        event.pid = number(Some(pid));
        self.env
            .events
            .publish(&container.namespace, topic::EXEC_STARTED, &event);
        tokio::spawn(monitor::exec(
            Arc::clone(self),
            Arc::clone(container),
            Arc::clone(process),
            started.process,
        ));
        Ok(event.pid)
    }

    /// Describes a further process and connects its streams.
    pub(super) async fn exec(&self, request: ExecProcessRequest) -> Result<(), TaskError> {
        id::validate(&request.exec_id)?;
        let container = self.container(&request.id)?;
        expect(&container.init, "execute in", Phase::Running)?;
        let extra = extra_data(request.spec.as_ref())?;
        let paths = Paths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let ports = wanted_ports(&paths, request.terminal, &extra)?;
        let spec = spec::adapt_exec(&extra.RuncOptions.value)?;
        let process = Process::new(request.exec_id.clone(), request.terminal, paths);
        let process = Arc::new(process);
        match container.execs().entry(request.exec_id.clone()) {
            Entry::Occupied(_) => return Err(TaskError::ProcessExists(request.exec_id)),
            Entry::Vacant(place) => place.insert(Arc::clone(&process)),
        };
        // Nobody may start it before its streams are there.
        let changing = process.changes.lock().await;
        let connected = async {
            Pending::open(&self.env.transport, ports)?
                .connections()
                .await
        };
        match connected.await {
            Ok(connections) => process.set_plan(Plan { spec, connections }),
            Err(error) => {
                container.execs().remove(&request.exec_id);
                return Err(error.into());
            }
        }
        drop(changing);
        let mut event = TaskExecAdded::new();
        event.container_id = request.id;
        event.exec_id = request.exec_id;
        self.env
            .events
            .publish(&container.namespace, topic::EXEC_ADDED, &event);
        Ok(())
    }
}

/// Refuses `action` unless the process is in `phase`.
pub(super) fn expect(
    process: &Process,
    action: &'static str,
    phase: Phase,
) -> Result<(), TaskError> {
    let now = process.state().phase;
    if now == phase {
        return Ok(());
    }
    Err(TaskError::State {
        action,
        state: now.as_str(),
    })
}

/// A process id for a message; 0 when there is none yet.
pub(super) fn number(pid: Option<Pid>) -> u32 {
    pid.map_or(0, |pid| pid.as_raw().unsigned_abs())
}
