//! containerd's task API. Every call that changes something runs to its end even when the
//! caller goes away: ttrpc drops a handler with its connection.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use fc_proto::protobuf::MessageField;
use fc_proto::task::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use fc_proto::task::{Task as TaskApi, TaskClient, create_task};
use fc_proto::ttrpc;
use fc_proto::ttrpc::asynchronous::{Service, TtrpcContext};
use fc_proto::ttrpc::context::Context;

use super::create::{create, lost};
use super::delete::delete;
use super::error::{CallError, Unsupported};
use super::exec::exec;
use super::shim::{Phase, Shim};
use super::stop;

/// The service.
pub struct TaskService {
    shim: Arc<Shim>,
}

impl TaskService {
    /// The service under all its names.
    pub fn register(shim: &Arc<Shim>) -> HashMap<String, Service> {
        create_task(Arc::new(Self {
            shim: Arc::clone(shim),
        }))
    }

    /// Passes a call on to the guest as it is.
    async fn pass<T: Send + 'static, F>(
        &self,
        call: impl FnOnce(TaskClient, Context) -> F + Send + 'static,
    ) -> ttrpc::Result<T>
    where
        F: Future<Output = ttrpc::Result<T>> + Send,
    {
        let shim = Arc::clone(&self.shim);
        detached(async move {
            let running = shim.reachable().await?;
            let guest = running.machine.guest();
            let result = call(guest.tasks(), guest.context()).await;
            result.map_err(|error| lost(&shim, error))
        })
        .await
    }
}

/// Runs `work` to its end, whatever becomes of the caller.
pub async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, CallError>> + Send + 'static,
) -> ttrpc::Result<T> {
    let result = tokio::spawn(work).await;
    let result = result.unwrap_or(Err(CallError::Panicked));
    result.map_err(|error| {
        let status = error.into_rpc();
        tracing::debug!("Call failed: {status}");
        status
    })
}

#[async_trait]
impl TaskApi for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let shim = Arc::clone(&self.shim);
        let pid = detached(async move { create(&shim, request).await }).await?;
        Ok(CreateTaskResponse {
            pid,
            ..CreateTaskResponse::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let shim = Arc::clone(&self.shim);
        detached(async move {
            let running = shim.reachable().await?;
            let process = shim.tasks.get(&request.id)?.process(&request.exec_id)?;
            let guest = running.machine.guest();
            let mut started = guest
                .tasks()
                .start(guest.context(), &request)
                .await
                .map_err(|error| lost(&shim, error))?;
            process.set_status(Status::RUNNING);
            if request.exec_id.is_empty() {
                shim.timeline.task(&request.id, "task_started");
            }
            started.pid = shim.pid(&running, started.pid);
            Ok(started)
        })
        .await
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let state = || {
            let task = self.shim.tasks.get(&request.id)?;
            let process = task.process(&request.exec_id)?;
            // After the VM's end there is no process to name.
            let pid = match self.shim.phase() {
                Phase::Running(running) => running.machine.vmm_pid(),
                _ => 0,
            };
            Ok(process.state(pid, &task.bundle.display().to_string()))
        };
        state().map_err(CallError::into_rpc)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let find = || self.shim.tasks.get(&request.id)?.process(&request.exec_id);
        let exit = find().map_err(CallError::into_rpc)?.wait().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at),
            ..WaitResponse::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let shim = Arc::clone(&self.shim);
        detached(async move { delete(&shim, request).await }).await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        detached(async move { exec(&shim, request).await }).await?;
        Ok(Empty::default())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let find = || self.shim.tasks.get(&request.id)?.process(&request.exec_id);
        find().map_err(CallError::into_rpc)?;
        self.pass(async move |guest, ctx| guest.kill(ctx, &request).await)
            .await
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        self.pass(async move |guest, ctx| guest.pids(ctx, &request).await)
            .await
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        detached(async move {
            pause(&shim, request).await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        self.pass(async move |guest, ctx| {
            let answer = guest.resume(ctx, &request).await?;
            set_status(&shim, &request.id, Status::RUNNING);
            Ok(answer)
        })
        .await
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(CallError::from(Unsupported::Checkpoint).into_rpc())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let find = || self.shim.tasks.get(&request.id)?.process(&request.exec_id);
        let process = find().map_err(CallError::into_rpc)?;
        if request.stdin {
            // The process sees the end of its stdin after the last byte: the stream carries it.
            process.close_stdin();
        }
        Ok(Empty::default())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        self.pass(async move |guest, ctx| guest.resize_pty(ctx, &request).await)
            .await
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        self.pass(async move |guest, ctx| guest.update(ctx, &request).await)
            .await
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        self.pass(async move |guest, ctx| guest.stats(ctx, &request).await)
            .await
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        let connect = || {
            self.shim.tasks.get(&request.id)?;
            let task_pid = self.shim.running()?.machine.vmm_pid();
            Ok(ConnectResponse {
                shim_pid: std::process::id(),
                task_pid,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..ConnectResponse::default()
            })
        };
        connect().map_err(CallError::into_rpc)
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        let shim = Arc::clone(&self.shim);
        detached(async move {
            let wanted = request.now
                || match shim.vm().await {
                    Ok(running) => stop::is_idle(&shim, &running),
                    Err(CallError::NotCreated) => false,
                    // It did not start or has ended.
                    Err(_) => true,
                };
            if wanted {
                stop::stop(&shim, stop::SHUTDOWN_BOUND).await?;
            }
            Ok(Empty::default())
        })
        .await
    }
}

/// Freezes a container; with its annotation, what it wrote is in its snapshot then. It goes on if that fails.
async fn pause(shim: &Shim, request: PauseRequest) -> Result<(), CallError> {
    let running = shim.reachable().await?;
    let task = shim.tasks.get(&request.id)?;
    let guest = running.machine.guest();
    let paused = guest.tasks().pause(guest.context(), &request).await;
    paused.map_err(|error| lost(shim, error))?;
    task.init.set_status(Status::PAUSED);
    let Some(write_back) = &task.write_back else {
        return Ok(());
    };
    let written = write_back.run(shim, &running, &task.id).await;
    if written.is_err() {
        let resume = ResumeRequest {
            id: request.id,
            ..ResumeRequest::default()
        };
        match guest.tasks().resume(guest.context(), &resume).await {
            Ok(_) => task.init.set_status(Status::RUNNING),
            Err(error) => tracing::error!(task = task.id, "The container stays paused: {error}"),
        }
    }
    written
}

fn set_status(shim: &Shim, id: &str, status: Status) {
    if let Ok(task) = shim.tasks.get(id) {
        task.init.set_status(status);
    }
}
