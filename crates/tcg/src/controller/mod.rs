//! What a request does, before and after the guest has started.

mod devices;

use std::io;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::api::Action;
use crate::boot_args;
use crate::console::Console;
use crate::fault::{DriveFault, Fault, StartFault, UpdateFault};
use crate::logger;
use crate::machine::Machine;
use crate::metrics;
use crate::mmds::{Mmds, MmdsFault};
use crate::model::{EntropyConfig, InstanceInfo, MmdsConfig, RateLimiter, VmConfig, VmState};
use crate::qemu::{End, MAX_DEVICES};
use crate::resources::Resources;
use crate::tsc;

/// Version of Firecracker whose API description is followed.
pub const FIRECRACKER_VERSION: &str = "1.15.1";

/// A successful request.
#[derive(Debug)]
pub enum Reply {
    /// 204.
    Empty,
    /// 200 with this body.
    Json(serde_json::Value),
}

/// The end of the guest, for the main loop.
#[derive(Debug)]
pub enum GuestEnd {
    /// QEMU has ended.
    Qemu {
        /// How.
        end: End,
        /// The serial console.
        console: Console,
    },
    /// The vsock device has failed, for this reason, while QEMU goes on: a guest without its device is none.
    Vsock(String),
}

/// How long QEMU's own end is waited for after the vsock device's: it explains more.
const QEMU_FIRST: Duration = Duration::from_secs(10);

/// One VM: its configuration, then its guest.
#[derive(Debug)]
pub struct Controller {
    id: String,
    resources: Resources,
    mmds: Mmds,
    machine: Option<Machine>,
    tsc: tsc::Mark,
    ended: mpsc::Sender<GuestEnd>,
}

impl Controller {
    /// A VM that is not configured yet. `ended` hears once of the end of the guest.
    #[must_use]
    pub fn new(id: String, mmds: Mmds, tsc: tsc::Mark, ended: mpsc::Sender<GuestEnd>) -> Self {
        Self {
            id,
            resources: Resources::default(),
            mmds,
            machine: None,
            tsc,
            ended,
        }
    }

    /// Applies a whole configuration and starts the guest (`--config-file`).
    ///
    /// # Errors
    /// As the requests would that it stands for.
    pub async fn boot(&mut self, config: VmConfig) -> Result<(), Fault> {
        if let Some(part) = config.unsupported() {
            return Err(not_offered(part));
        }
        if let Some(logger) = config.logger {
            self.handle(Action::PutLogger(logger)).await?;
        }
        if let Some(metrics) = config.metrics {
            self.handle(Action::PutMetrics(metrics)).await?;
        }
        if let Some(machine) = config.machine_config {
            self.handle(Action::UpdateMachine(machine.into())).await?;
        }
        self.handle(Action::PutBootSource(config.boot_source))
            .await?;
        for drive in config.drives {
            self.handle(Action::PutDrive(drive)).await?;
        }
        for interface in config.network_interfaces {
            self.handle(Action::PutNetwork(interface)).await?;
        }
        if let Some(balloon) = config.balloon {
            self.handle(Action::PutBalloon(balloon)).await?;
        }
        if let Some(vsock) = config.vsock {
            self.handle(Action::PutVsock(vsock)).await?;
        }
        if let Some(entropy) = config.entropy {
            self.handle(Action::PutEntropy(entropy)).await?;
        }
        if let Some(mmds) = config.mmds_config {
            self.handle(Action::PutMmdsConfig(mmds)).await?;
        }
        self.handle(Action::InstanceStart).await.map(drop)
    }

    /// Does what a request asks for.
    ///
    /// # Errors
    /// The request is not allowed in this state, or fails.
    pub async fn handle(&mut self, action: Action) -> Result<Reply, Fault> {
        match action {
            Action::GetInstanceInfo => Ok(json(&self.info())),
            Action::GetVersion => Ok(Reply::Json(
                serde_json::json!({ "firecracker_version": FIRECRACKER_VERSION }),
            )),
            Action::GetVmConfig => Ok(json(&self.config())),
            Action::GetMachineConfig => Ok(json(self.resources.machine())),
            Action::GetBalloon => self.balloon(),
            Action::GetMmds => Ok(Reply::Json(self.mmds()?.lock().store.value())),
            Action::PutMmds(value) => {
                self.mmds()?.lock().store.put(value)?;
                Ok(Reply::Empty)
            }
            Action::PatchMmds(patch) => {
                self.mmds()?.lock().store.patch(&patch)?;
                Ok(Reply::Empty)
            }
            Action::NotOffered(what) => Err(not_offered(&what)),
            before_start if before_start.only_before_start() => {
                if self.machine.is_some() {
                    return Err(Fault::NotSupportedPostBoot);
                }
                self.configure(before_start).await
            }
            after_start => {
                if self.machine.is_none() {
                    return Err(Fault::NotSupportedPreBoot);
                }
                self.control(after_start).await
            }
        }
    }

    fn info(&self) -> InstanceInfo {
        let state = match &self.machine {
            None => VmState::NotStarted,
            Some(machine) if machine.paused() => VmState::Paused,
            Some(_) => VmState::Running,
        };
        InstanceInfo {
            id: self.id.clone(),
            state,
            vmm_version: FIRECRACKER_VERSION.to_owned(),
            app_name: "Firecracker".to_owned(),
        }
    }

    /// The metadata service. A running guest that cannot ask it has none.
    fn mmds(&self) -> Result<&Mmds, MmdsFault> {
        if self.machine.is_some() && self.resources.metadata_interfaces().0.is_empty() {
            return Err(MmdsFault::NotInitialized);
        }
        Ok(&self.mmds)
    }

    fn config(&self) -> VmConfig {
        let mut config = self.resources.config();
        let (network_interfaces, ipv4_address) = self.resources.metadata_interfaces();
        if !network_interfaces.is_empty() {
            let state = self.mmds.lock();
            config.mmds_config = Some(MmdsConfig {
                version: state.version,
                network_interfaces,
                ipv4_address,
                imds_compat: state.imds_compat,
            });
        }
        config
    }

    async fn configure(&mut self, action: Action) -> Result<Reply, Fault> {
        match action {
            Action::PutBootSource(config) => self.resources.set_boot_source(config)?,
            Action::UpdateMachine(update) => self.resources.update_machine(&update)?,
            Action::PutDrive(config) => self.resources.set_drive(config)?,
            Action::PutVsock(config) => self.resources.set_vsock(config)?,
            Action::PutSerial(config) => self.resources.set_serial(config),
            Action::PutNetwork(config) => self.resources.set_interface(config)?,
            Action::PutBalloon(config) => self.resources.set_balloon(config)?,
            Action::PutEntropy(config) => {
                let rate_limiter = config.rate_limiter.and_then(RateLimiter::effective);
                self.resources.set_entropy(EntropyConfig { rate_limiter });
            }
            Action::PutLogger(config) => logger::configure(config).map_err(Fault::Logger)?,
            Action::PutMetrics(config) => {
                metrics::configure(&config).map_err(|error| Fault::Metrics(error.to_string()))?;
            }
            Action::PutMmdsConfig(config) => self.resources.set_metadata(&config, &self.mmds)?,
            Action::InstanceStart => self.start().await?,
            other => return Err(not_offered(&format!("{other:?}"))),
        }
        Ok(Reply::Empty)
    }

    async fn start(&mut self) -> Result<(), StartFault> {
        let (count, room) = (self.resources.device_count(), MAX_DEVICES);
        if count > room {
            return Err(StartFault::TooManyDevices { count, room });
        }
        let (kernel, args) = self.resources.kernel()?;
        let tsc_khz = self.tsc.host_khz().await;
        let vcpus = self.resources.machine().vcpu_count;
        let args = boot_args::rewrite(args, self.resources.root(), tsc_khz, vcpus)?;
        let kernel = kernel.to_owned();
        for change in &args.changes {
            log::info!("Kernel arguments: {change}");
        }
        log::info!("Kernel arguments in use: {}", args.cmdline);
        let vsock = match self.resources.vsock_mut() {
            Some(vsock) => Some(vsock.take_qemu_end().map_err(StartFault::Vsock)?),
            None => None,
        };
        let started = Machine::start(&self.id, &self.resources, &kernel, args.cmdline, vsock).await;
        let (machine, console) = started?;
        if let Some(vsock) = self.resources.vsock_mut() {
            let failure = vsock.failure().map_err(StartFault::WatchVsock)?;
            let (end, ended) = (machine.ended(), self.ended.clone());
            tokio::spawn(async move {
                if let Some(reason) = failure.await
                    && tokio::time::timeout(QEMU_FIRST, end).await.is_err()
                {
                    metrics::add("vsock", "muxer_event_fails");
                    drop(ended.send(GuestEnd::Vsock(reason)).await);
                }
            });
        }
        let end = machine.ended();
        let ended = self.ended.clone();
        tokio::spawn(async move {
            let end = end.await;
            // The main loop that would listen may be ending too.
            drop(ended.send(GuestEnd::Qemu { end, console }).await);
        });
        self.machine = Some(machine);
        Ok(())
    }

    /// Writes a line of metrics, with what the devices of a running guest have done.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn flush_metrics(&self) -> io::Result<()> {
        if let Some(machine) = &self.machine {
            self.count_interfaces();
            self.count_vsock();
            match machine.drive_counters().await {
                Ok(counters) => self.count_drives(&counters),
                // The line is worth having without them.
                Err(error) => log::warn!("Cannot count what the drives have done: {error}"),
            }
        }
        metrics::flush()
    }

    async fn control(&mut self, action: Action) -> Result<Reply, Fault> {
        let Some(machine) = &mut self.machine else {
            return Err(Fault::NotSupportedPreBoot);
        };
        match action {
            Action::Pause => machine.pause().await.map_err(Fault::Internal)?,
            Action::Resume => machine.resume().await.map_err(Fault::Internal)?,
            Action::SendCtrlAltDel => machine.send_ctrl_alt_del().await.map_err(Fault::Internal)?,
            Action::FlushMetrics => self.flush_metrics().await.map_err(Fault::FlushMetrics)?,
            Action::PatchDrive(update) => {
                let group = format!("block_{}", update.drive_id);
                let updated = self.update_drive(update).await;
                let name = if updated.is_ok() {
                    "update_count"
                } else {
                    "update_fails"
                };
                // A client's misspelt ids are no devices.
                if !matches!(updated, Err(UpdateFault::DeviceNotFound)) {
                    metrics::add(group, name);
                    metrics::add("block", name);
                }
                updated.map_err(DriveFault::Update)?;
            }
            Action::GetBalloonStatistics => {
                let read = self.balloon_statistics().await;
                return read.map_err(Fault::BalloonRead);
            }
            Action::PatchBalloon(update) => self
                .update_balloon(update)
                .await
                .map_err(Fault::BalloonUpdate)?,
            Action::PatchBalloonStatistics(update) => self
                .update_balloon_statistics(update)
                .await
                .map_err(Fault::BalloonUpdate)?,
            Action::PatchNetwork(update) => self.resources.update_interface(&update)?,
            other => return Err(not_offered(&format!("{other:?}"))),
        }
        Ok(Reply::Empty)
    }
}

fn not_offered(what: &str) -> Fault {
    Fault::NotSupported(format!("{what} is not offered by firecracker-tcg."))
}

fn json(value: &impl serde::Serialize) -> Reply {
    // Plain structs with text keys: this cannot fail.
    Reply::Json(serde_json::to_value(value).unwrap_or_default())
}

#[cfg(test)]
mod tests;
