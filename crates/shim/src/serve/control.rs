//! The control API of this VM (ttrpc service `Firecracker`), on the shim's second socket.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fc_client::Client;
use fc_client::api::{Balloon, BalloonStatistics, BalloonStatisticsUpdate, BalloonUpdate};
use fc_proto::control::{
    CreateVMRequest, CreateVMResponse, Firecracker, FirecrackerBalloonDevice,
    GetBalloonConfigRequest, GetBalloonConfigResponse, GetBalloonStatsRequest,
    GetBalloonStatsResponse, GetVMInfoRequest, GetVMInfoResponse, GetVMMetadataRequest,
    GetVMMetadataResponse, PauseVMRequest, ResumeVMRequest, SetVMMetadataRequest, StopVMRequest,
    UpdateBalloonRequest, UpdateBalloonStatsRequest, UpdateVMMetadataRequest, create_firecracker,
};
use fc_proto::protobuf::MessageField;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::ttrpc;
use fc_proto::ttrpc::asynchronous::{Service, TtrpcContext};

use super::error::CallError;
use super::life;
use super::service::detached;
use super::shim::Shim;
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
        Err(CallError::Invalid(format!(
            "This is the shim of VM {own:?}, not of {vm_id:?}"
        )))
    }

    /// Makes calls to the VMM of the running VM.
    async fn vmm<T: Send + 'static, F>(
        &self,
        vm_id: &str,
        call: impl FnOnce(Client) -> F + Send + 'static,
    ) -> ttrpc::Result<T>
    where
        F: Future<Output = Result<T, CallError>> + Send,
    {
        self.check(vm_id).map_err(CallError::into_rpc)?;
        let shim = Arc::clone(&self.shim);
        detached(async move { call(shim.vm().await?.machine.vmm().clone()).await }).await
    }
}

#[async_trait]
impl Firecracker for ControlService {
    async fn create_vm(
        &self,
        _: &TtrpcContext,
        request: CreateVMRequest,
    ) -> ttrpc::Result<CreateVMResponse> {
        self.check(&request.VMID).map_err(CallError::into_rpc)?;
        let shim = Arc::clone(&self.shim);
        detached(async move {
            life::begin(&shim, request)?;
            let running = shim.vm().await?;
            let machine = &running.machine;
            Ok(CreateVMResponse {
                VMID: shim.dir.vm_id().to_owned(),
                SocketPath: machine.api_socket().display().to_string(),
                LogFifoPath: machine.log_fifo().display().to_string(),
                MetricsFifoPath: machine.metrics_fifo().display().to_string(),
                ..CreateVMResponse::default()
            })
        })
        .await
    }

    async fn stop_vm(&self, _: &TtrpcContext, request: StopVMRequest) -> ttrpc::Result<Empty> {
        self.check(&request.VMID).map_err(CallError::into_rpc)?;
        let shim = Arc::clone(&self.shim);
        let bound = match request.TimeoutSeconds {
            0 => stop::DEFAULT_BOUND,
            seconds => Duration::from_secs(seconds.into()),
        };
        detached(async move {
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
        let get = async {
            self.check(&request.VMID)?;
            let running = self.shim.vm().await?;
            let machine = &running.machine;
            Ok(GetVMInfoResponse {
                VMID: request.VMID,
                SocketPath: machine.api_socket().display().to_string(),
                LogFifoPath: machine.log_fifo().display().to_string(),
                MetricsFifoPath: machine.metrics_fifo().display().to_string(),
                VSockPath: machine.vsock().display().to_string(),
                ..GetVMInfoResponse::default()
            })
        };
        get.await.map_err(CallError::into_rpc)
    }

    async fn pause_vm(&self, _: &TtrpcContext, request: PauseVMRequest) -> ttrpc::Result<Empty> {
        self.vmm(&request.VMID, async |vmm| {
            vmm.pause().await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn resume_vm(&self, _: &TtrpcContext, request: ResumeVMRequest) -> ttrpc::Result<Empty> {
        self.check(&request.VMID).map_err(CallError::into_rpc)?;
        let shim = Arc::clone(&self.shim);
        detached(async move {
            shim.vm().await?.machine.resume().await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn set_vm_metadata(
        &self,
        _: &TtrpcContext,
        request: SetVMMetadataRequest,
    ) -> ttrpc::Result<Empty> {
        self.vmm(&request.VMID, async move |vmm| {
            vmm.put_mmds(&json(&request.Metadata)?).await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn update_vm_metadata(
        &self,
        _: &TtrpcContext,
        request: UpdateVMMetadataRequest,
    ) -> ttrpc::Result<Empty> {
        self.vmm(&request.VMID, async move |vmm| {
            vmm.patch_mmds(&json(&request.Metadata)?).await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn get_vm_metadata(
        &self,
        _: &TtrpcContext,
        request: GetVMMetadataRequest,
    ) -> ttrpc::Result<GetVMMetadataResponse> {
        self.vmm(&request.VMID, async |vmm| {
            Ok(GetVMMetadataResponse {
                Metadata: vmm.get_mmds().await?.to_string(),
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
        self.vmm(&request.VMID, async |vmm| {
            Ok(GetBalloonConfigResponse {
                BalloonConfig: MessageField::some(balloon(&vmm.get_balloon().await?)),
                ..GetBalloonConfigResponse::default()
            })
        })
        .await
    }

    async fn update_balloon(
        &self,
        _: &TtrpcContext,
        request: UpdateBalloonRequest,
    ) -> ttrpc::Result<Empty> {
        self.vmm(&request.VMID, async move |vmm| {
            let amount_mib = number("AmountMib", request.AmountMib)?;
            vmm.patch_balloon(&BalloonUpdate { amount_mib }).await?;
            Ok(Empty::default())
        })
        .await
    }

    async fn get_balloon_stats(
        &self,
        _: &TtrpcContext,
        request: GetBalloonStatsRequest,
    ) -> ttrpc::Result<GetBalloonStatsResponse> {
        self.vmm(&request.VMID, async |vmm| {
            Ok(balloon_stats(&vmm.balloon_statistics().await?))
        })
        .await
    }

    async fn update_balloon_stats(
        &self,
        _: &TtrpcContext,
        request: UpdateBalloonStatsRequest,
    ) -> ttrpc::Result<Empty> {
        self.vmm(&request.VMID, async move |vmm| {
            let interval = number("StatsPollingIntervals", request.StatsPollingIntervals)?;
            vmm.patch_balloon_statistics(&BalloonStatisticsUpdate {
                stats_polling_interval_s: interval,
            })
            .await?;
            Ok(Empty::default())
        })
        .await
    }
}

fn json(text: &str) -> Result<serde_json::Value, CallError> {
    serde_json::from_str(text)
        .map_err(|e| CallError::Invalid(format!("Metadata is not a JSON document: {e}")))
}

fn number<T: TryFrom<i64>>(field: &str, value: i64) -> Result<T, CallError> {
    T::try_from(value).map_err(|_| CallError::Invalid(format!("{field} cannot be {value}")))
}

fn balloon(config: &Balloon) -> FirecrackerBalloonDevice {
    FirecrackerBalloonDevice {
        AmountMib: config.amount_mib.into(),
        DeflateOnOom: config.deflate_on_oom,
        StatsPollingIntervals: config.stats_polling_interval_s.unwrap_or_default().into(),
        ..FirecrackerBalloonDevice::default()
    }
}

fn balloon_stats(stats: &BalloonStatistics) -> GetBalloonStatsResponse {
    let optional = |n: Option<u64>| saturating(n.unwrap_or_default());
    GetBalloonStatsResponse {
        ActualMib: saturating(stats.actual_mib),
        ActualPages: saturating(stats.actual_pages),
        AvailableMemory: optional(stats.available_memory),
        DiskCaches: optional(stats.disk_caches),
        FreeMemory: optional(stats.free_memory),
        HugetlbAllocations: optional(stats.hugetlb_allocations),
        HugetlbFailures: optional(stats.hugetlb_failures),
        MajorFaults: optional(stats.major_faults),
        MinorFaults: optional(stats.minor_faults),
        SwapIn: optional(stats.swap_in),
        SwapOut: optional(stats.swap_out),
        TargetMib: saturating(stats.target_mib),
        TargetPages: saturating(stats.target_pages),
        TotalMemory: optional(stats.total_memory),
        ..GetBalloonStatsResponse::default()
    }
}

fn saturating(number: impl Into<u64>) -> i64 {
    i64::try_from(number.into()).unwrap_or(i64::MAX)
}
