//! Our own service on the control socket (`aws.firecracker.containerd.vm.v1.Vm`): what people want to see of
//! this VM, from the moment somebody asked for it until its shim ends.

mod read;
mod status;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc;
use fc_proto::ttrpc::asynchronous::{Service, TtrpcContext};
use fc_proto::vm::{ReadRequest, ReadResponse, StatusResponse, Vm, create_vm};

use super::error::CallError;
use super::shim::Shim;

/// The service.
pub struct VmService {
    shim: Arc<Shim>,
}

impl VmService {
    /// The service under its name.
    pub fn register(shim: &Arc<Shim>) -> HashMap<String, Service> {
        create_vm(Arc::new(Self {
            shim: Arc::clone(shim),
        }))
    }
}

/// Nothing here changes anything, so a call ends with its caller's connection.
#[async_trait]
impl Vm for VmService {
    async fn status(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<StatusResponse> {
        Ok(status::status(&self.shim).await)
    }

    async fn read(&self, _: &TtrpcContext, request: ReadRequest) -> ttrpc::Result<ReadResponse> {
        let read = read::read(&self.shim, &request).await;
        read.map_err(CallError::into_rpc)
    }
}
