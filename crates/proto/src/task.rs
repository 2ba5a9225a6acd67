//! containerd's task API, version 2 (`containerd.task.v2.Task`).
//!
//! The generated code of `containerd-shim-protos` names the service
//! `containerd.task.v3.Task`, a renamed copy with the same messages. Here it is
//! served and called under its version 2 name, which every supported containerd
//! and every agent knows.

use std::collections::HashMap;
use std::sync::Arc;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use protobuf::Message;
use ttrpc::asynchronous::{Client, Service};
use ttrpc::context::Context;

pub use containerd_shim_protos::api;
pub use containerd_shim_protos::shim_async::Task;

/// Name of the service on the wire.
pub const SERVICE: &str = "containerd.task.v2.Task";

/// Registers `task` under its version 2 name and, for clients that ask for it, version 3.
#[must_use]
pub fn create_task(task: Arc<dyn Task + Send + Sync>) -> HashMap<String, Service> {
    let v2 = containerd_shim_protos::shim_async::create_task(Arc::clone(&task));
    let v3 = containerd_shim_protos::shim_async::create_task(task);
    v2.into_values()
        .map(|service| (SERVICE.to_owned(), service))
        .chain(v3)
        .collect()
}

/// Calls `service.method` on `client`: the one place that encodes a unary ttrpc call by hand.
///
/// # Errors
/// The server's status, or why the call or its encoding failed.
pub async fn call<Req: Message, Resp: Message>(
    client: &Client,
    ctx: Context,
    service: &str,
    method: &str,
    req: &Req,
) -> ttrpc::Result<Resp> {
    let encode = |e: protobuf::Error| ttrpc::Error::Others(format!("{service}.{method}: {e}"));
    let mut request = ttrpc::Request::new();
    request.service = service.to_owned();
    request.method = method.to_owned();
    request.timeout_nano = ctx.timeout_nano;
    request.metadata = ttrpc::context::to_pb(ctx.metadata);
    request.payload = req.write_to_bytes().map_err(encode)?;
    let response = client.request(request).await?;
    Resp::parse_from_bytes(&response.payload).map_err(encode)
}

/// Client of `containerd.task.v2.Task`.
#[derive(Clone)]
pub struct TaskClient {
    client: Client,
}

macro_rules! methods {
    ($($name:ident $wire:literal ($req:ty) -> $resp:ty;)*) => {
        impl TaskClient {
            $(
                #[doc = concat!("Calls `", $wire, "`.")]
                ///
                /// # Errors
                /// The server's status, or why the call failed.
                pub async fn $name(&self, ctx: Context, req: &$req) -> ttrpc::Result<$resp> {
                    call(&self.client, ctx, SERVICE, $wire, req).await
                }
            )*
        }
    };
}

impl TaskClient {
    /// A client on an established connection.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

methods! {
    state "State" (StateRequest) -> StateResponse;
    create "Create" (CreateTaskRequest) -> CreateTaskResponse;
    start "Start" (StartRequest) -> StartResponse;
    delete "Delete" (DeleteRequest) -> DeleteResponse;
    pids "Pids" (PidsRequest) -> PidsResponse;
    pause "Pause" (PauseRequest) -> Empty;
    resume "Resume" (ResumeRequest) -> Empty;
    checkpoint "Checkpoint" (CheckpointTaskRequest) -> Empty;
    kill "Kill" (KillRequest) -> Empty;
    exec "Exec" (ExecProcessRequest) -> Empty;
    resize_pty "ResizePty" (ResizePtyRequest) -> Empty;
    close_io "CloseIO" (CloseIORequest) -> Empty;
    update "Update" (UpdateTaskRequest) -> Empty;
    wait "Wait" (WaitRequest) -> WaitResponse;
    stats "Stats" (StatsRequest) -> StatsResponse;
    connect "Connect" (ConnectRequest) -> ConnectResponse;
    shutdown "Shutdown" (ShutdownRequest) -> Empty;
}
