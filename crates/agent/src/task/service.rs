//! The service `containerd.task.v2.Task`.

use std::sync::Arc;

use async_trait::async_trait;
use fc_proto::containerd::shim::oci::ProcessDetails;
use fc_proto::containerd::types::task::{ProcessInfo, Status};
use fc_proto::task::Task;
use fc_proto::task::api;
use protobuf::well_known_types::any::Any;
use protobuf::{EnumOrUnknown, Message, MessageField};
use ttrpc::asynchronous::TtrpcContext;

use super::exec::number;
use super::process::{Phase, State};
use super::{TaskError, Tasks};
use crate::cgroup::METRICS_TYPE_URL;
use crate::debug;
use crate::events::timestamp;
use crate::machine::Shutdown;
use crate::rpc::detached;
use crate::stdio::ProcessIo;

/// ttrpc metadata that carries containerd's namespace.
const NAMESPACE_KEY: &str = "containerd-namespace-ttrpc";
/// Namespace of calls without that.
const DEFAULT_NAMESPACE: &str = "default";

/// Serves [`Tasks`].
#[derive(Debug)]
pub struct TaskService {
    tasks: Arc<Tasks>,
    shutdown: Shutdown,
}

impl TaskService {
    /// A service for `tasks`; its Shutdown is passed to `shutdown`.
    #[must_use]
    pub fn new(tasks: Arc<Tasks>, shutdown: Shutdown) -> Self {
        Self { tasks, shutdown }
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        context: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        // Not the whole request: a spec's environment may hold secrets.
        debug!("Create {} terminal={}", request.id, request.terminal);
        let namespace = namespace(context);
        let tasks = Arc::clone(&self.tasks);
        let pid = detached(async move { tasks.create(namespace, request).await }).await?;
        let mut response = api::CreateTaskResponse::new();
        response.pid = pid;
        Ok(response)
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        debug!("Start {request}");
        let tasks = Arc::clone(&self.tasks);
        let pid = detached(async move { tasks.start(&request.id, &request.exec_id).await }).await?;
        let mut response = api::StartResponse::new();
        response.pid = pid;
        Ok(response)
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        debug!("Delete {request}");
        let tasks = Arc::clone(&self.tasks);
        let state =
            detached(async move { tasks.delete(&request.id, &request.exec_id).await }).await?;
        let mut response = api::DeleteResponse::new();
        response.pid = number(state.pid);
        if let Some(exit) = state.exit {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(timestamp(exit.at));
        }
        Ok(response)
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        debug!(
            "Exec {} {} terminal={}",
            request.id, request.exec_id, request.terminal
        );
        let tasks = Arc::clone(&self.tasks);
        detached(async move { tasks.exec(request).await }).await?;
        Ok(api::Empty::new())
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        let (container, process) = self.tasks.process(&request.id, &request.exec_id)?;
        let state = process.state();
        let mut response = api::StateResponse::new();
        response.id = request.id;
        response.exec_id = request.exec_id;
        response.bundle = container.bundle.dir().display().to_string();
        response.pid = number(state.pid);
        response.status = EnumOrUnknown::new(status(&state));
        response.stdin.clone_from(&process.paths.stdin);
        response.stdout.clone_from(&process.paths.stdout);
        response.stderr.clone_from(&process.paths.stderr);
        response.terminal = process.terminal;
        if let Some(exit) = state.exit {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(timestamp(exit.at));
        }
        Ok(response)
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        debug!("Wait {request}");
        // Changes nothing, so it may be cancelled with its caller.
        let (exit, _) = self.tasks.wait(&request.id, &request.exec_id).await?;
        let mut response = api::WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(timestamp(exit.at));
        Ok(response)
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        debug!("Kill {request}");
        let tasks = Arc::clone(&self.tasks);
        detached(async move {
            tasks
                .kill(&request.id, &request.exec_id, request.signal, request.all)
                .await
        })
        .await?;
        Ok(api::Empty::new())
    }

    async fn pause(
        &self,
        _: &TtrpcContext,
        request: api::PauseRequest,
    ) -> ttrpc::Result<api::Empty> {
        debug!("Pause {request}");
        let tasks = Arc::clone(&self.tasks);
        detached(async move { tasks.pause(&request.id).await }).await?;
        Ok(api::Empty::new())
    }

    async fn resume(
        &self,
        _: &TtrpcContext,
        request: api::ResumeRequest,
    ) -> ttrpc::Result<api::Empty> {
        debug!("Resume {request}");
        let tasks = Arc::clone(&self.tasks);
        detached(async move { tasks.resume(&request.id).await }).await?;
        Ok(api::Empty::new())
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let container = self.tasks.container(&request.id)?;
        let pids = self.tasks.env.runtime.pids(&request.id).await;
        let execs = container.execs().clone();
        let mut response = api::PidsResponse::new();
        for pid in pids.map_err(TaskError::from)? {
            let mut info = ProcessInfo::new();
            info.pid = pid;
            let exec = execs.values().find(|exec| number(exec.state().pid) == pid);
            if let Some(exec) = exec {
                let mut details = ProcessDetails::new();
                details.exec_id.clone_from(&exec.exec_id);
                info.info = MessageField::some(any("containerd.runc.v1.ProcessDetails", &details)?);
            }
            response.processes.push(info);
        }
        Ok(response)
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<api::Empty> {
        debug!("CloseIO {request}");
        let (_, process) = self.tasks.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.with_io(ProcessIo::close_stdin);
        }
        Ok(api::Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        let (_, process) = self.tasks.process(&request.id, &request.exec_id)?;
        process.resize(request.width, request.height)?;
        Ok(api::Empty::new())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        debug!("Update {}", request.id);
        let container = self.tasks.container(&request.id)?;
        let tasks = Arc::clone(&self.tasks);
        detached(async move {
            let _changing = container.init.changes.lock().await;
            let resources = &request.resources.value;
            let updated = tasks.env.runtime.update(&request.id, resources).await;
            updated.map_err(TaskError::from)
        })
        .await?;
        Ok(api::Empty::new())
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let container = self.tasks.container(&request.id)?;
        let cgroup = container.cgroup.as_ref().ok_or(TaskError::NoStats)?;
        let mut response = api::StatsResponse::new();
        response.stats = MessageField::some(any(METRICS_TYPE_URL, &cgroup.metrics())?);
        Ok(response)
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        let container = self.tasks.container(&request.id)?;
        let mut response = api::ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = number(container.init.state().pid);
        Ok(response)
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        _: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        Err(TaskError::Unsupported(
            "Checkpoints of a container are not supported inside a VM: the guest has no CRIU",
        )
        .into())
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        _: api::ShutdownRequest,
    ) -> ttrpc::Result<api::Empty> {
        debug!("Shutdown");
        let tasks = Arc::clone(&self.tasks);
        let shutdown = self.shutdown.clone();
        detached(async move {
            shutdown.run(&tasks).await;
            Ok::<_, TaskError>(())
        })
        .await?;
        Ok(api::Empty::new())
    }
}

fn namespace(context: &TtrpcContext) -> String {
    context
        .metadata
        .get(NAMESPACE_KEY)
        .and_then(|values| values.first())
        .map_or(DEFAULT_NAMESPACE, String::as_str)
        .to_owned()
}

fn status(state: &State) -> Status {
    match state.phase {
        Phase::Created => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Paused => Status::PAUSED,
        Phase::Stopped | Phase::Deleted => Status::STOPPED,
    }
}

fn any(type_url: &str, message: &impl Message) -> Result<Any, TaskError> {
    let value = message
        .write_to_bytes()
        .map_err(|source| TaskError::Decode {
            what: "answer",
            source,
        })?;
    Ok(Any {
        type_url: type_url.to_owned(),
        value,
        ..Any::default()
    })
}
