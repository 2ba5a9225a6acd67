//! The service `Agent`: what the original's agent lacks.

use std::sync::Arc;

use async_trait::async_trait;
use fc_proto::guest::{
    Agent, ConfigureRequest, ConfigureResponse, ExportUpperRequest, ExportUpperResponse, Mark,
    NextEventRequest, NextEventResponse, PROTOCOL, WaitProcessRequest, WaitProcessResponse,
    feature,
};
use protobuf::MessageField;
use ttrpc::Code;
use ttrpc::asynchronous::TtrpcContext;

use crate::configure::{VERSION, apply, boottime_ns};
use crate::debug;
use crate::events::{Events, NoSuchEvent, Numbered, timestamp};
use crate::export::Exporter;
use crate::machine::Role;
use crate::rpc::{detached, status};
use crate::task::Tasks;

/// What this agent can do beyond the original's.
const FEATURES: [&str; 6] = [
    feature::ROOTFS_MOUNTS,
    feature::HOST_LISTENS,
    feature::UNMOUNT_FLUSHES,
    feature::NUMBERED_EVENTS,
    feature::EXPORT_UPPER,
    feature::WAIT_PROCESS,
];

/// Serves [`Agent`].
#[derive(Debug)]
pub struct AgentService {
    /// Whether there is a machine to configure.
    pub role: Role,
    /// Moments of the boot: names and `CLOCK_BOOTTIME` in nanoseconds.
    pub marks: Vec<(&'static str, u64)>,
    /// To be given out.
    pub events: Events,
    /// Tells which containers run.
    pub tasks: Arc<Tasks>,
    /// Sends what containers wrote.
    pub exporter: Arc<Exporter>,
}

#[async_trait]
impl Agent for AgentService {
    async fn configure(
        &self,
        _: &TtrpcContext,
        request: ConfigureRequest,
    ) -> ttrpc::Result<ConfigureResponse> {
        debug!("Configure {} hostname={}", request.vm_id, request.hostname);
        if self.role.owns_settings() {
            apply(&request)?;
        }
        let mut response = ConfigureResponse::new();
        response.agent_version = VERSION.to_owned();
        response.protocol = PROTOCOL;
        response.features = FEATURES.map(str::to_owned).to_vec();
        let mark = |(name, boottime_ns): &(&str, u64)| {
            let mut mark = Mark::new();
            (*name).clone_into(&mut mark.name);
            mark.boottime_ns = *boottime_ns;
            mark
        };
        response.marks = self.marks.iter().map(mark).collect();
        response.boottime_ns = boottime_ns();
        Ok(response)
    }

    async fn next_event(
        &self,
        _: &TtrpcContext,
        request: NextEventRequest,
    ) -> ttrpc::Result<NextEventResponse> {
        Ok(self.events.next(request.after).await?.into())
    }

    async fn export_upper(
        &self,
        _: &TtrpcContext,
        request: ExportUpperRequest,
    ) -> ttrpc::Result<ExportUpperResponse> {
        debug!("ExportUpper {request}");
        self.tasks.check_at_rest(&request.container_id)?;
        let exporter = Arc::clone(&self.exporter);
        detached(async move { exporter.export(&request.container_id, request.port).await }).await
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        debug!("WaitProcess {request}");
        let (id, exec_id) = (&request.container_id, &request.exec_id);
        // Changes nothing, so it may be cancelled with its caller.
        let (exit, written) = self.tasks.wait(id, exec_id).await?;
        let mut response = WaitProcessResponse::new();
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(timestamp(exit.at));
        response.stdout_bytes = written.stdout;
        response.stderr_bytes = written.stderr;
        Ok(response)
    }
}

impl From<Numbered> for NextEventResponse {
    fn from(event: Numbered) -> Self {
        let mut response = Self::new();
        response.number = event.number;
        response.lost = event.lost;
        response.timestamp = event.envelope.timestamp;
        response.namespace = event.envelope.namespace;
        response.topic = event.envelope.topic;
        response.event = event.envelope.event;
        response
    }
}

impl From<NoSuchEvent> for ttrpc::Error {
    fn from(error: NoSuchEvent) -> Self {
        status(Code::INVALID_ARGUMENT, &error)
    }
}
