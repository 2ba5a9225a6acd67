//! Changes to the devices of a running guest.

use std::collections::BTreeMap;

use super::{Controller, Reply, json};
use crate::drive::DriveFile;
use crate::fault::{BalloonDeviceFault, BalloonFault, Fault, UpdateFault};
use crate::machine::DriveCounters;
use crate::metrics;
use crate::model::{BalloonStatisticsUpdate, BalloonUpdate, DriveUpdate};

impl Controller {
    pub(super) async fn update_drive(&mut self, update: DriveUpdate) -> Result<(), UpdateFault> {
        let Some(machine) = &mut self.machine else {
            return Err(UpdateFault::DeviceNotFound);
        };
        let drives = self.resources.drives();
        let index = drives
            .iter()
            .position(|drive| drive.config.drive_id == update.drive_id)
            .ok_or(UpdateFault::DeviceNotFound)?;
        if update.path_on_host.is_none() && update.rate_limiter.is_none() {
            // Without anything to change, Firecracker takes it for the other kind of drive.
            return Err(UpdateFault::DifferentBackend);
        }
        if let Some(path) = update.path_on_host {
            let new = DriveFile::open(&path, drives[index].read_only())?;
            machine.swap_drive(index, &new).await?;
            self.resources.note_swap(index, path, new);
        }
        if let Some(limiter) = update.rate_limiter {
            let config = &self.resources.drives()[index].config;
            let limiter = config.rate_limiter.unwrap_or_default().updated(limiter);
            machine.limit_drive(index, limiter).await?;
            self.resources.note_limiter(index, limiter);
        }
        Ok(())
    }

    /// Takes over the drives' counters.
    pub(super) fn count_drives(&self, counters: &[DriveCounters]) {
        let drives = self.resources.drives().iter().zip(counters);
        count(
            "block",
            drives.map(|(drive, counters)| (drive.config.drive_id.as_str(), *counters)),
        );
    }

    /// Takes over the network interfaces' counters.
    pub(super) fn count_interfaces(&self) {
        let interfaces = self.resources.interfaces().iter();
        count(
            "net",
            interfaces.filter_map(|it| Some((it.config.iface_id.as_str(), it.traffic()?))),
        );
    }

    /// Takes over the vsock device's counters.
    pub(super) fn count_vsock(&self) {
        for (name, total) in self.resources.vsock().iter().flat_map(|it| it.counters()) {
            metrics::set_total("vsock", name, total);
        }
    }

    pub(super) fn balloon(&self) -> Result<Reply, Fault> {
        match self.resources.balloon() {
            Some(balloon) => Ok(json(balloon)),
            None if self.machine.is_some() => {
                Err(Fault::BalloonRead(BalloonDeviceFault::DeviceNotFound))
            }
            None => Err(BalloonFault::DeviceNotFound.into()),
        }
    }

    pub(super) async fn balloon_statistics(&self) -> Result<Reply, BalloonDeviceFault> {
        let (Some(machine), Some(balloon)) = (&self.machine, self.resources.balloon()) else {
            return Err(BalloonDeviceFault::DeviceNotFound);
        };
        if balloon.stats_polling_interval_s == 0 {
            return Err(BalloonDeviceFault::StatisticsDisabled);
        }
        let memory = self.resources.machine().mem_size_mib;
        let statistics = machine
            .balloon_statistics(memory, balloon.amount_mib)
            .await?;
        Ok(json(&statistics))
    }

    pub(super) async fn update_balloon(
        &mut self,
        update: BalloonUpdate,
    ) -> Result<(), BalloonDeviceFault> {
        let memory = self.resources.machine().mem_size_mib;
        let (Some(machine), Some(balloon)) = (&self.machine, self.resources.balloon_mut()) else {
            return Err(BalloonDeviceFault::DeviceNotFound);
        };
        if update.amount_mib as usize > memory {
            return Err(BalloonDeviceFault::TooMuchMemoryRequested(
                update.amount_mib,
            ));
        }
        machine.set_balloon(memory, update.amount_mib).await?;
        balloon.amount_mib = update.amount_mib;
        Ok(())
    }

    pub(super) async fn update_balloon_statistics(
        &mut self,
        update: BalloonStatisticsUpdate,
    ) -> Result<(), BalloonDeviceFault> {
        let (Some(machine), Some(balloon)) = (&self.machine, self.resources.balloon_mut()) else {
            return Err(BalloonDeviceFault::DeviceNotFound);
        };
        let seconds = update.stats_polling_interval_s;
        if seconds == balloon.stats_polling_interval_s {
            return Ok(());
        }
        if seconds == 0 || balloon.stats_polling_interval_s == 0 {
            return Err(BalloonDeviceFault::StatisticsStateChange);
        }
        machine.set_statistics_interval(seconds).await?;
        balloon.stats_polling_interval_s = seconds;
        Ok(())
    }
}

/// Takes over the counters of all devices of a kind, each device's and their sums, as Firecracker groups them.
fn count<'a, const N: usize>(
    kind: &'static str,
    devices: impl Iterator<Item = (&'a str, [(&'static str, u64); N])>,
) {
    let mut sums = BTreeMap::<_, u64>::new();
    for (id, counters) in devices {
        for (name, total) in counters {
            metrics::set_total(format!("{kind}_{id}"), name, total);
            *sums.entry(name).or_default() += total;
        }
    }
    for (name, total) in sums {
        metrics::set_total(kind, name, total);
    }
}
