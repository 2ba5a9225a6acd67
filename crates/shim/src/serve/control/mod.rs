//! The control API of this VM (ttrpc service `Firecracker`), on the shim's second socket.
//!
//! Only the service's frame is here; what the calls do is in the modules below it, in
//! [`life`](super::life) and in [`stop`](super::stop).

mod balloon;
mod info;
mod metadata;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fc_client::{ApiError, Client};
use fc_proto::control::{
    CreateVMRequest, CreateVMResponse, Firecracker, GetBalloonConfigRequest,
    GetBalloonConfigResponse, GetBalloonStatsRequest, GetBalloonStatsResponse, GetVMInfoRequest,
    GetVMInfoResponse, GetVMMetadataRequest, GetVMMetadataResponse, PauseVMRequest,
    ResumeVMRequest, SetVMMetadataRequest, StopVMRequest, UpdateBalloonRequest,
    UpdateBalloonStatsRequest, UpdateVMMetadataRequest, create_firecracker,
};
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc;
use fc_proto::ttrpc::asynchronous::{Service, TtrpcContext};

use super::error::{CallError, InvalidRequest, Refusal};
use super::life;
use super::service::detached;
use super::shim::{Running, Shim};
use super::stop;

/// The service.
pub struct ControlService {
    shim: Arc<Shim>,
}

impl ControlService {
    /// The service under its name.
    pub fn register(shim: &Arc<Shim>) -> HashMap<String, Service> {
        create_firecracker(Arc::new(Self {
            shim: Arc::clone(shim),
        }))
    }

    fn check(&self, vm_id: &str) -> Result<(), CallError> {
        let own = self.shim.dir.vm_id();
        if vm_id == own {
            return Ok(());
        }
        Err(InvalidRequest::OtherVm {
            own: own.to_owned(),
            vm_id: vm_id.to_owned(),
        }
        .into())
    }

    /// Does something with the running VM, whatever becomes of the caller.
    async fn on_vm<T: Send + 'static, F>(
        &self,
        vm_id: &str,
        work: impl FnOnce(Arc<Running>) -> F + Send + 'static,
    ) -> ttrpc::Result<T>
    where
        F: Future<Output = Result<T, CallError>> + Send,
    {
        let checked = self.check(vm_id);
        let shim = Arc::clone(&self.shim);
        detached(async move {
            checked?;
            let result = work(shim.vm().await?).await;
            result.map_err(|error| gone(&shim, error))
        })
        .await
    }

    /// The same with the VMM's API only.
    async fn on_vmm<T: Send + 'static, F>(
        &self,
        vm_id: &str,
        work: impl FnOnce(Client) -> F + Send + 'static,
    ) -> ttrpc::Result<T>
    where
        F: Future<Output = Result<T, CallError>> + Send,
    {
        self.on_vm(vm_id, async |running| {
            work(running.machine.vmm().clone()).await
        })
        .await
    }
}

/// A VMM that does not answer because it is gone is a VM that is not there.
fn gone(shim: &Shim, error: CallError) -> CallError {
    match &error {
        CallError::Vmm { error: cause, .. }
            if matches!(**cause, ApiError::VmmGone { .. } | ApiError::Connect { .. }) =>
        {
            shim.running().err().unwrap_or(error)
        }
        _ => error,
    }
}

/// The VM of a CreateVM that is not answered yet: dropped with the call, when its caller hangs up or its
/// time is over, it ends the VM, which nobody knows of.
struct Unanswered(Option<Arc<Shim>>);

impl Unanswered {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(shim) = self.0.take() {
            tokio::spawn(async move { stop::discard(&shim).await });
        }
    }
}

#[async_trait]
impl Firecracker for ControlService {
    async fn create_vm(
        &self,
        _: &TtrpcContext,
        request: CreateVMRequest,
    ) -> ttrpc::Result<CreateVMResponse> {
        let begun = self
            .check(&request.VMID)
            .and_then(|()| life::begin(&self.shim, request, life::Origin::Call));
        begun.map_err(CallError::into_rpc)?;
        let unanswered = Unanswered(Some(Arc::clone(&self.shim)));
        let result = self.shim.vm().await;
        unanswered.answered();
        match result {
            Ok(running) => Ok(info::created(&self.shim, &running.machine)),
            Err(error) => Err(error.into_rpc()),
        }
    }

    async fn stop_vm(&self, _: &TtrpcContext, request: StopVMRequest) -> ttrpc::Result<Empty> {
        let checked = self.check(&request.VMID);
        let shim = Arc::clone(&self.shim);
        let bound = match request.TimeoutSeconds {
            0 => stop::DEFAULT_BOUND,
            seconds => Duration::from_secs(seconds.into()),
        };
        detached(async move {
            checked?;
            stop::stop(&shim, bound).await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn get_vm_info(
        &self,
        _: &TtrpcContext,
        request: GetVMInfoRequest,
    ) -> ttrpc::Result<GetVMInfoResponse> {
        let shim = Arc::clone(&self.shim);
        self.on_vm(&request.VMID, async move |running| {
            Ok(info::info(&shim, &running.machine))
        })
        .await
    }

    async fn pause_vm(&self, _: &TtrpcContext, request: PauseVMRequest) -> ttrpc::Result<Empty> {
        self.on_vmm(&request.VMID, async |vmm| {
            vmm.pause().await.map_err(Refusal::State.error())?;
            Ok(Empty::default())
        })
        .await
    }

    async fn resume_vm(&self, _: &TtrpcContext, request: ResumeVMRequest) -> ttrpc::Result<Empty> {
        self.on_vm(&request.VMID, async |running| {
            let resumed = running.machine.resume().await;
            resumed.map_err(Refusal::State.error())?;
            Ok(Empty::default())
        })
        .await
    }

    async fn set_vm_metadata(
        &self,
        _: &TtrpcContext,
        request: SetVMMetadataRequest,
    ) -> ttrpc::Result<Empty> {
        self.on_vmm(&request.VMID, async move |vmm| {
            metadata::set(&vmm, &request.Metadata).await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn update_vm_metadata(
        &self,
        _: &TtrpcContext,
        request: UpdateVMMetadataRequest,
    ) -> ttrpc::Result<Empty> {
        self.on_vmm(&request.VMID, async move |vmm| {
            metadata::update(&vmm, &request.Metadata).await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn get_vm_metadata(
        &self,
        _: &TtrpcContext,
        request: GetVMMetadataRequest,
    ) -> ttrpc::Result<GetVMMetadataResponse> {
        self.on_vmm(&request.VMID, async |vmm| {
            Ok(GetVMMetadataResponse {
                Metadata: metadata::get(&vmm).await?,
                ..GetVMMetadataResponse::default()
            })
        })
        .await
    }

    async fn get_balloon_config(
        &self,
        _: &TtrpcContext,
        request: GetBalloonConfigRequest,
    ) -> ttrpc::Result<GetBalloonConfigResponse> {
        self.on_vmm(&request.VMID, async |vmm| balloon::config(&vmm).await)
            .await
    }

    async fn update_balloon(
        &self,
        _: &TtrpcContext,
        request: UpdateBalloonRequest,
    ) -> ttrpc::Result<Empty> {
        self.on_vmm(&request.VMID.clone(), async move |vmm| {
            balloon::update(&vmm, &request).await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn get_balloon_stats(
        &self,
        _: &TtrpcContext,
        request: GetBalloonStatsRequest,
    ) -> ttrpc::Result<GetBalloonStatsResponse> {
        self.on_vmm(&request.VMID, async |vmm| balloon::statistics(&vmm).await)
            .await
    }

    async fn update_balloon_stats(
        &self,
        _: &TtrpcContext,
        request: UpdateBalloonStatsRequest,
    ) -> ttrpc::Result<Empty> {
        self.on_vmm(&request.VMID.clone(), async move |vmm| {
            balloon::update_statistics(&vmm, &request).await?;
            Ok(Empty::default())
        })
        .await
    }
}
