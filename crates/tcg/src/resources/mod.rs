//! What is configured before the guest starts: each part is checked, and its files opened, when it is set.

use std::fs::File;
use std::net::Ipv4Addr;

use crate::boot_args::{self, Root};
use crate::drive::{Drive, DriveFile};
use crate::fault::{
    BalloonFault, BootSourceFault, DriveFault, NetworkFault, StartFault, UpdateFault, VsockFault,
};
use crate::interface::Interface;
use crate::kernel_image;
use crate::mmds::{self, Mmds, MmdsConfigFault};
use crate::model::{
    BalloonConfig, BootSourceConfig, DriveConfig, EntropyConfig, MachineConfig, MachineConfigError,
    MachineConfigUpdate, MmdsConfig, NetworkConfig, NetworkUpdate, RateLimiter, SerialConfig,
    VmConfig, VsockConfig,
};
use crate::vsock::Vsock;

/// The configuration.
#[derive(Debug, Default)]
pub struct Resources {
    machine: MachineConfig,
    boot_source: Option<BootSource>,
    drives: Vec<Drive>,
    vsock: Option<Vsock>,
    entropy: Option<EntropyConfig>,
    balloon: Option<BalloonConfig>,
    interfaces: Vec<Interface>,
    serial: SerialConfig,
}

#[derive(Debug)]
struct BootSource {
    config: BootSourceConfig,
    kernel: File,
}

impl Resources {
    /// Sets kernel, initrd and kernel arguments.
    ///
    /// # Errors
    /// A file cannot be opened, or the arguments are too long.
    pub fn set_boot_source(&mut self, config: BootSourceConfig) -> Result<(), BootSourceFault> {
        let kernel = File::open(&config.kernel_image_path).map_err(BootSourceFault::KernelPath)?;
        if let Some(path) = &config.initrd_path {
            File::open(path).map_err(BootSourceFault::InitrdPath)?;
        }
        if let Some(args) = &config.boot_args {
            boot_args::check(args)?;
        }
        self.boot_source = Some(BootSource { config, kernel });
        Ok(())
    }

    /// Changes processors and memory.
    ///
    /// # Errors
    /// A limit is broken.
    pub fn update_machine(
        &mut self,
        update: &MachineConfigUpdate,
    ) -> Result<(), MachineConfigError> {
        let updated = self.machine.updated(update)?;
        if self
            .balloon
            .as_ref()
            .is_some_and(|balloon| updated.mem_size_mib < balloon.amount_mib as usize)
        {
            return Err(MachineConfigError::IncompatibleBalloonSize);
        }
        self.machine = updated;
        Ok(())
    }

    /// Adds a drive, or replaces the one of the same id. The root drive comes first, the others in the order
    /// in which they were added.
    ///
    /// # Errors
    /// There is another root drive already, or the drive's own fault.
    pub fn set_drive(&mut self, config: DriveConfig) -> Result<(), DriveFault> {
        let position = self
            .drives
            .iter()
            .position(|drive| drive.config.drive_id == config.drive_id);
        let is_root = config.is_root_device;
        let has_root = self
            .drives
            .first()
            .is_some_and(|drive| drive.config.is_root_device);
        if is_root && has_root && position != Some(0) {
            return Err(DriveFault::RootAlreadyAdded);
        }
        let drive = Drive::new(config).map_err(DriveFault::Create)?;
        match position {
            Some(at) => {
                self.drives[at] = drive;
                if is_root {
                    self.drives.swap(0, at);
                }
            }
            None if is_root => self.drives.insert(0, drive),
            None => self.drives.push(drive),
        }
        Ok(())
    }

    /// Sets the vsock device; an earlier one and its socket go.
    ///
    /// # Errors
    /// The socket exists or cannot be made.
    pub fn set_vsock(&mut self, config: VsockConfig) -> Result<(), VsockFault> {
        if let Some(earlier) = self.vsock.take() {
            earlier.remove()?;
        }
        self.vsock = Some(Vsock::new(config)?);
        Ok(())
    }

    /// Adds a source of random numbers.
    pub fn set_entropy(&mut self, config: EntropyConfig) {
        self.entropy = Some(config);
    }

    /// Says where the serial console's output goes.
    pub fn set_serial(&mut self, config: SerialConfig) {
        self.serial = config;
    }

    /// Adds a balloon.
    ///
    /// # Errors
    /// It is larger than the guest's memory, or needs what is not offered.
    pub fn set_balloon(&mut self, config: BalloonConfig) -> Result<(), BalloonFault> {
        if config.amount_mib as usize > self.machine.mem_size_mib {
            return Err(BalloonFault::TooManyPagesRequested);
        }
        if config.free_page_hinting {
            return Err(BalloonFault::NotOffered("Free page hinting"));
        }
        self.balloon = Some(config);
        Ok(())
    }

    /// Adds a network interface, or replaces the one of the same id.
    ///
    /// # Errors
    /// Another interface has the same address, or the tap device cannot be opened; an interface of the same id
    /// is gone then.
    pub fn set_interface(&mut self, config: NetworkConfig) -> Result<(), NetworkFault> {
        let same_id = |other: &Interface| other.config.iface_id == config.iface_id;
        if let Some(mac) = config.guest_mac
            && self
                .interfaces
                .iter()
                .any(|other| other.config.guest_mac == Some(mac) && !same_id(other))
        {
            return Err(NetworkFault::MacInUse(mac));
        }
        // It goes first: the new one may want the same tap device.
        if let Some(at) = self.interfaces.iter().position(same_id) {
            self.interfaces.swap_remove(at);
        }
        self.interfaces.push(Interface::new(config)?);
        Ok(())
    }

    /// Changes the limits of a network interface.
    ///
    /// # Errors
    /// There is none of that id, or none with limits.
    pub fn update_interface(&mut self, update: &NetworkUpdate) -> Result<(), NetworkFault> {
        self.interfaces
            .iter_mut()
            .find(|interface| interface.config.iface_id == update.iface_id)
            .ok_or(NetworkFault::Update(UpdateFault::DeviceNotFound))?
            .update(update)
    }

    /// The balloon, also to note what became of it.
    #[must_use]
    pub fn balloon_mut(&mut self) -> Option<&mut BalloonConfig> {
        self.balloon.as_mut()
    }

    /// Notes that a running drive has another file now.
    pub fn note_swap(&mut self, index: usize, path: String, backing: DriveFile) {
        let drive = &mut self.drives[index];
        drive.config.path_on_host = Some(path);
        drive.backing = backing;
    }

    /// Notes that a running drive has other limits now.
    pub fn note_limiter(&mut self, index: usize, limiter: Option<RateLimiter>) {
        self.drives[index].config.rate_limiter = limiter;
    }

    /// Processors and memory.
    #[must_use]
    pub fn machine(&self) -> &MachineConfig {
        &self.machine
    }

    /// The drives in the guest's order.
    #[must_use]
    pub fn drives(&self) -> &[Drive] {
        &self.drives
    }

    /// The balloon.
    #[must_use]
    pub fn balloon(&self) -> Option<&BalloonConfig> {
        self.balloon.as_ref()
    }

    /// The network interfaces in the guest's order.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// Says on which interfaces guests can ask for metadata, and on no others.
    ///
    /// # Errors
    /// The configuration is not valid, or a tap device cannot be opened once more.
    pub fn set_metadata(
        &mut self,
        config: &MmdsConfig,
        service: &Mmds,
    ) -> Result<(), MmdsConfigFault> {
        let ids = self.interfaces.iter().map(|it| it.config.iface_id.as_str());
        mmds::check(config, ids)?;
        let address = config.ipv4_address.unwrap_or(mmds::DEFAULT_ADDRESS);
        for interface in &mut self.interfaces {
            let asked = config
                .network_interfaces
                .contains(&interface.config.iface_id);
            interface.serve_metadata(asked.then(|| (address, service.clone())))?;
        }
        let mut state = service.lock();
        state.version = config.version;
        state.imds_compat = config.imds_compat;
        Ok(())
    }

    /// Ids of the interfaces on which guests can ask for metadata, and where.
    #[must_use]
    pub fn metadata_interfaces(&self) -> (Vec<String>, Option<Ipv4Addr>) {
        let serving = self.interfaces.iter();
        let serving = serving.filter_map(|it| Some((&it.config.iface_id, it.metadata_address()?)));
        let (ids, addresses): (Vec<_>, Vec<_>) = serving.map(|(id, at)| (id.clone(), at)).unzip();
        (ids, addresses.first().copied())
    }

    /// The source of random numbers.
    #[must_use]
    pub fn entropy(&self) -> Option<&EntropyConfig> {
        self.entropy.as_ref()
    }

    /// Where the serial console's output goes.
    #[must_use]
    pub fn serial(&self) -> &SerialConfig {
        &self.serial
    }

    /// The vsock device.
    #[must_use]
    pub fn vsock(&self) -> Option<&Vsock> {
        self.vsock.as_ref()
    }

    /// The vsock device, to be connected.
    #[must_use]
    pub fn vsock_mut(&mut self) -> Option<&mut Vsock> {
        self.vsock.as_mut()
    }

    /// Path of the initrd.
    #[must_use]
    pub fn initrd_path(&self) -> Option<&str> {
        self.boot_source.as_ref()?.config.initrd_path.as_deref()
    }

    /// The kernel's path, once it is known to be a kernel, and its arguments as configured.
    ///
    /// # Errors
    /// None is configured, or it is no kernel.
    pub fn kernel(&self) -> Result<(&str, &str), StartFault> {
        use std::io::Seek;
        let source = self
            .boot_source
            .as_ref()
            .ok_or(StartFault::MissingKernelConfig)?;
        let path = &source.config.kernel_image_path;
        let mut file = &source.kernel;
        file.rewind()
            .map_err(kernel_image::KernelImageError::Read)
            .and_then(|()| kernel_image::identify(&mut file))
            .map_err(|error| StartFault::Kernel {
                path: path.clone(),
                error,
            })?;
        Ok((
            path,
            source
                .config
                .boot_args
                .as_deref()
                .unwrap_or(boot_args::DEFAULT),
        ))
    }

    /// The root drive, for the kernel's arguments.
    #[must_use]
    pub fn root(&self) -> Option<Root<'_>> {
        let drive = self
            .drives
            .first()
            .filter(|drive| drive.config.is_root_device)?;
        Some(Root {
            partuuid: drive.config.partuuid.as_deref(),
            read_only: drive.read_only(),
        })
    }

    /// Number of virtio devices.
    #[must_use]
    pub fn device_count(&self) -> usize {
        self.drives.len()
            + self.interfaces.len()
            + usize::from(self.vsock.is_some())
            + usize::from(self.entropy.is_some())
            + usize::from(self.balloon.is_some())
    }

    /// Everything, as `GET /vm/config` shows it.
    #[must_use]
    pub fn config(&self) -> VmConfig {
        VmConfig {
            drives: self
                .drives
                .iter()
                .map(|drive| drive.config.clone())
                .collect(),
            boot_source: self
                .boot_source
                .as_ref()
                .map(|it| it.config.clone())
                .unwrap_or_default(),
            machine_config: Some(self.machine.clone()),
            // Firecracker does not show the deprecated id.
            vsock: self.vsock.as_ref().map(|it| VsockConfig {
                vsock_id: None,
                ..it.config.clone()
            }),
            entropy: self.entropy.clone(),
            balloon: self.balloon.clone(),
            network_interfaces: self
                .interfaces
                .iter()
                .map(|interface| interface.config.clone())
                .collect(),
            ..VmConfig::default()
        }
    }
}

#[cfg(test)]
mod tests;
