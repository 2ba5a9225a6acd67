//! Containers and their processes, and the services through which the host commands them.
//!
//! [`Tasks`] holds the containers; each operation on one is in the file of its name. The services
//! only translate messages.

mod bundle;
mod create;
mod delete;
mod error;
mod exec;
mod id;
mod io_service;
mod monitor;
mod process;
mod service;
mod signal;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cgroup::Cgroup;
use crate::events::Events;
use crate::oci::Runtime;
use crate::reaper::{Exit, Reaper};
use crate::stdio::Written;
use crate::tracker::Tracker;
use crate::transport::Transport;
use bundle::Bundle;
pub use error::TaskError;
pub use io_service::IoService;
use process::{Phase, Process};
pub use service::TaskService;

/// What operations on tasks need of the rest of the agent.
#[derive(Debug)]
pub struct Env {
    /// For the streams.
    pub transport: Transport,
    /// For the processes' ends.
    pub reaper: Reaper,
    /// Does the work.
    pub runtime: Runtime,
    /// Told of everything.
    pub events: Events,
    /// Counts output streams that are not delivered yet.
    pub streams: Tracker,
    /// Directory of all bundles; `/container` in a VM.
    pub bundles: PathBuf,
    /// Cgroup of all containers; `/containers` in a VM.
    pub cgroup_parent: String,
}

/// A container.
#[derive(Debug)]
struct Container {
    id: String,
    /// Of containerd's, for the events.
    namespace: String,
    bundle: Bundle,
    init: Arc<Process>,
    /// Further processes by their id.
    execs: Mutex<BTreeMap<String, Arc<Process>>>,
    /// Whether all processes end with init.
    own_pid_namespace: bool,
    cgroup: Option<Cgroup>,
}

/// All containers.
#[derive(Debug)]
pub struct Tasks {
    env: Env,
    /// None while a container is being created.
    containers: Mutex<HashMap<String, Option<Arc<Container>>>>,
}

impl Tasks {
    /// No containers yet.
    #[must_use]
    pub fn new(env: Env) -> Self {
        Self {
            env,
            containers: Mutex::default(),
        }
    }

    /// Checks that no process of container `id` can write to files now: it is frozen, has ended, or
    /// is not listed any more.
    ///
    /// # Errors
    /// When it runs or is about to, or the id is no id.
    pub fn check_at_rest(&self, id: &str) -> Result<(), TaskError> {
        id::validate(id)?;
        let state = match self.containers().get(id) {
            None => return Ok(()),
            Some(None) => "being created",
            Some(Some(container)) => match container.init.state().phase {
                Phase::Running => Phase::Running.as_str(),
                Phase::Created | Phase::Paused | Phase::Stopped | Phase::Deleted => return Ok(()),
            },
        };
        Err(TaskError::State {
            action: "export the files of",
            state,
        })
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        self.containers()
            .get(id)
            .cloned()
            .flatten()
            .ok_or_else(|| TaskError::NoTask(id.to_owned()))
    }

    /// A container and one of its processes; an empty `exec_id` is its init.
    fn process(
        &self,
        id: &str,
        exec_id: &str,
    ) -> Result<(Arc<Container>, Arc<Process>), TaskError> {
        let container = self.container(id)?;
        let process = container.process(exec_id)?;
        Ok((container, process))
    }

    /// Waits for a process's end: how it ended and what it had written by then. Fails when there is no such process,
    /// or it is deleted before it ran.
    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> Result<(Exit, Written), TaskError> {
        let (_, process) = self.process(id, exec_id)?;
        let ended = process.wait().await;
        ended.ok_or_else(|| TaskError::NoTask(id.to_owned()))
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Container>>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    fn process(&self, exec_id: &str) -> Result<Arc<Process>, TaskError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let process = self.execs().get(exec_id).cloned();
        process.ok_or_else(|| TaskError::NoProcess {
            task: self.id.clone(),
            exec: exec_id.to_owned(),
        })
    }

    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
