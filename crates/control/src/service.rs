//! The calls on the wire: ttrpc service `Firecracker`.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use fc_proto::NAMESPACE_KEY;
use fc_proto::control::{
    CONTAINERD_ADDRESS_KEY, CreateVMRequest, CreateVMResponse, Firecracker, FirecrackerClient,
    GetBalloonConfigRequest, GetBalloonConfigResponse, GetBalloonStatsRequest,
    GetBalloonStatsResponse, GetVMInfoRequest, GetVMInfoResponse, GetVMMetadataRequest,
    GetVMMetadataResponse, PauseVMRequest, ResumeVMRequest, SetVMMetadataRequest, StopVMRequest,
    UpdateBalloonRequest, UpdateBalloonStatsRequest, UpdateVMMetadataRequest, create_firecracker,
};
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc;
use fc_proto::ttrpc::asynchronous::{Service, TtrpcContext};
use fc_proto::ttrpc::context::Context;

use crate::error::ControlError;
use crate::host::Host;

/// The service of a host, under its name, for a ttrpc server.
#[must_use]
pub fn service(host: Host) -> HashMap<String, Service> {
    create_firecracker(Arc::new(Calls { host }))
}

struct Calls {
    host: Host,
}

impl Calls {
    /// The namespace of a request that is for this host.
    fn namespace<'a>(&self, context: &'a TtrpcContext) -> Result<&'a str, ControlError> {
        let value = |key| Some(context.metadata.get(key)?.first()?.as_str());
        let served = &self.host.settings().containerd_address;
        if let Some(asked) = value(CONTAINERD_ADDRESS_KEY)
            && asked != served
        {
            return Err(ControlError::OtherContainerd {
                asked: asked.to_owned(),
                served: served.clone(),
            });
        }
        value(NAMESPACE_KEY)
            .filter(|namespace| !namespace.is_empty())
            .ok_or(ControlError::NoNamespace)
    }

    /// Passes a call on to its VM's shim.
    async fn pass<T>(
        &self,
        context: &TtrpcContext,
        name: &'static str,
        vm_id: &str,
        call: impl AsyncFnOnce(FirecrackerClient, Context) -> ttrpc::Result<T>,
    ) -> ttrpc::Result<T> {
        let answer = async {
            let namespace = self.namespace(context)?;
            self.host.call(namespace, vm_id, call).await
        };
        said(name, vm_id, answer.await)
    }
}

/// Notes a failed call in the log. Requests are not logged: metadata may hold secrets.
fn said<T>(name: &'static str, vm_id: &str, answer: Result<T, ControlError>) -> ttrpc::Result<T> {
    match &answer {
        Ok(_) => tracing::debug!(vmID = vm_id, "{name}"),
        Err(error) => {
            let code = error.code();
            tracing::info!(vmID = vm_id, "{name} failed: {code:?}: {error}");
        }
    }
    answer.map_err(ControlError::into_rpc)
}

#[async_trait]
impl Firecracker for Calls {
    async fn create_vm(
        &self,
        context: &TtrpcContext,
        request: CreateVMRequest,
    ) -> ttrpc::Result<CreateVMResponse> {
        let vm_id = request.VMID.clone();
        let answer = async {
            let namespace = self.namespace(context)?;
            self.host.create_vm(namespace, request).await
        };
        said("CreateVM", &vm_id, answer.await)
    }

    async fn stop_vm(
        &self,
        context: &TtrpcContext,
        request: StopVMRequest,
    ) -> ttrpc::Result<Empty> {
        let vm_id = request.VMID.clone();
        let answer = async {
            let namespace = self.namespace(context)?;
            self.host.stop_vm(namespace, request).await
        };
        said("StopVM", &vm_id, answer.await)
    }

    async fn pause_vm(
        &self,
        context: &TtrpcContext,
        request: PauseVMRequest,
    ) -> ttrpc::Result<Empty> {
        let call = async |vm: FirecrackerClient, c| vm.pause_vm(c, &request).await;
        self.pass(context, "PauseVM", &request.VMID, call).await
    }

    async fn resume_vm(
        &self,
        context: &TtrpcContext,
        request: ResumeVMRequest,
    ) -> ttrpc::Result<Empty> {
        let call = async |vm: FirecrackerClient, c| vm.resume_vm(c, &request).await;
        self.pass(context, "ResumeVM", &request.VMID, call).await
    }

    async fn get_vm_info(
        &self,
        context: &TtrpcContext,
        request: GetVMInfoRequest,
    ) -> ttrpc::Result<GetVMInfoResponse> {
        let call = async |vm: FirecrackerClient, c| vm.get_vm_info(c, &request).await;
        self.pass(context, "GetVMInfo", &request.VMID, call).await
    }

    async fn set_vm_metadata(
        &self,
        context: &TtrpcContext,
        request: SetVMMetadataRequest,
    ) -> ttrpc::Result<Empty> {
        let call = async |vm: FirecrackerClient, c| vm.set_vm_metadata(c, &request).await;
        self.pass(context, "SetVMMetadata", &request.VMID, call)
            .await
    }

    async fn update_vm_metadata(
        &self,
        context: &TtrpcContext,
        request: UpdateVMMetadataRequest,
    ) -> ttrpc::Result<Empty> {
        let call = async |vm: FirecrackerClient, c| vm.update_vm_metadata(c, &request).await;
        self.pass(context, "UpdateVMMetadata", &request.VMID, call)
            .await
    }

    async fn get_vm_metadata(
        &self,
        context: &TtrpcContext,
        request: GetVMMetadataRequest,
    ) -> ttrpc::Result<GetVMMetadataResponse> {
        let call = async |vm: FirecrackerClient, c| vm.get_vm_metadata(c, &request).await;
        self.pass(context, "GetVMMetadata", &request.VMID, call)
            .await
    }

    async fn get_balloon_config(
        &self,
        context: &TtrpcContext,
        request: GetBalloonConfigRequest,
    ) -> ttrpc::Result<GetBalloonConfigResponse> {
        let call = async |vm: FirecrackerClient, c| vm.get_balloon_config(c, &request).await;
        self.pass(context, "GetBalloonConfig", &request.VMID, call)
            .await
    }

    async fn update_balloon(
        &self,
        context: &TtrpcContext,
        request: UpdateBalloonRequest,
    ) -> ttrpc::Result<Empty> {
        let call = async |vm: FirecrackerClient, c| vm.update_balloon(c, &request).await;
        self.pass(context, "UpdateBalloon", &request.VMID, call)
            .await
    }

    async fn get_balloon_stats(
        &self,
        context: &TtrpcContext,
        request: GetBalloonStatsRequest,
    ) -> ttrpc::Result<GetBalloonStatsResponse> {
        let call = async |vm: FirecrackerClient, c| vm.get_balloon_stats(c, &request).await;
        self.pass(context, "GetBalloonStats", &request.VMID, call)
            .await
    }

    async fn update_balloon_stats(
        &self,
        context: &TtrpcContext,
        request: UpdateBalloonStatsRequest,
    ) -> ttrpc::Result<Empty> {
        let call = async |vm: FirecrackerClient, c| vm.update_balloon_stats(c, &request).await;
        self.pass(context, "UpdateBalloonStats", &request.VMID, call)
            .await
    }
}
