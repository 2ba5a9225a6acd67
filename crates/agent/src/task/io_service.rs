//! The `IOProxy` service: tells whether a process's streams work and reconnects them.

use std::sync::Arc;

use async_trait::async_trait;
use fc_errors::chain;
use fc_proto::guest::{IoAttachRequest, IoProxy, IoStateRequest, IoStateResponse};
use fc_proto::task::api::Empty;
use ttrpc::asynchronous::TtrpcContext;

use super::{TaskError, Tasks};
use crate::rpc::detached;
use crate::stdio::{Pending, Ports, ProcessIo};
use crate::{debug, say};

/// Serves the streams of [`Tasks`].
#[derive(Debug)]
pub struct IoService(Arc<Tasks>);

impl IoService {
    /// A service for `tasks`.
    #[must_use]
    pub fn new(tasks: Arc<Tasks>) -> Self {
        Self(tasks)
    }
}

#[async_trait]
impl IoProxy for IoService {
    async fn state(
        &self,
        _: &TtrpcContext,
        request: IoStateRequest,
    ) -> ttrpc::Result<IoStateResponse> {
        let (_, process) = self.0.process(&request.ID, &request.ExecID)?;
        let mut response = IoStateResponse::new();
        // A process that is not started yet has lost nothing.
        response.IsOpen = process.with_io(ProcessIo::is_healthy).unwrap_or(true);
        Ok(response)
    }

    async fn attach(&self, _: &TtrpcContext, request: IoAttachRequest) -> ttrpc::Result<Empty> {
        debug!("Attach {request}");
        let (_, process) = self.0.process(&request.ID, &request.ExecID)?;
        let wanted = |path: &str, port: u32| (!path.is_empty() && port != 0).then_some(port);
        let ports = Ports {
            stdin: wanted(&process.paths.stdin, request.StdinPort),
            stdout: wanted(&process.paths.stdout, request.StdoutPort),
            stderr: wanted(&process.paths.stderr, request.StderrPort).filter(|_| !process.terminal),
            host_listens: request.HostListens,
        };
        let pending = Pending::open(&self.0.env.transport, ports).map_err(TaskError::from)?;
        let attach = async move {
            let connections = pending.connections().await?;
            process.with_io(|io| io.attach(connections));
            Ok::<_, TaskError>(())
        };
        if ports.host_listens {
            detached(attach).await?;
        } else {
            // An old host connects only after our answer.
            tokio::spawn(async move {
                if let Err(error) = attach.await {
                    say!("Cannot attach to {}: {}", request.ID, chain(&error));
                }
            });
        }
        Ok(Empty::new())
    }
}
