//! The API calls that turn a fresh VMM into the VM of a spec.

use fc_client::api::{
    BootSource, Drive, Logger, MachineConfig, Metrics, MmdsConfig, MmdsVersion, NetworkInterface,
    Vsock,
};
use fc_client::{ApiError, Client};
use fc_config::Config;
use fc_drives::{BootDrive, StubDrives};

use super::error::BootError;
use super::spec::{Interface, VmSpec, drive_mount_field};
use crate::dir;

/// Id of the root drive (the original's).
const ROOT_DRIVE: &str = "root_drive";
/// vsock address of the guest; without meaning outside of it.
const GUEST_CID: u32 = 3;
/// Drives and network interfaces that every VMM has room for.
const FEW_DEVICES: usize = 16;

/// Paths of files for the VMM, as it sees them.
pub(super) struct Shown {
    pub(super) kernel: String,
    pub(super) initrd: Option<String>,
    pub(super) root: String,
    pub(super) log: String,
    pub(super) metrics: String,
}

/// Configures the VM, in the original's order: logger, metrics, machine, balloon, boot source, drives,
/// network interfaces, vsock, metadata service. `emulates` says that the VMM has a CPU of its own.
pub(super) async fn configure(
    api: &Client,
    config: &Config,
    spec: &VmSpec,
    shown: &Shown,
    stubs: &StubDrives,
    emulates: bool,
) -> Result<(), BootError> {
    telemetry(api, config, shown).await?;
    let machine = MachineConfig {
        smt: Some(spec.smt),
        cpu_template: spec
            .cpu_template
            .as_ref()
            .and_then(|template| template.for_vmm(emulates))
            .map(ToOwned::to_owned),
        ..MachineConfig::new(spec.vcpus, spec.memory_mib)
    };
    named("MachineCfg", api.put_machine_config(&machine).await)?;
    if let Some(balloon) = &spec.balloon {
        named("BalloonDevice", api.put_balloon(balloon).await)?;
    }
    let boot_source = BootSource {
        kernel_image_path: shown.kernel.clone(),
        initrd_path: shown.initrd.clone(),
        boot_args: Some(spec.kernel_args.clone()),
    };
    let put = api.put_boot_source(&boot_source).await;
    named("KernelImagePath or KernelArgs", put)?;
    drives(api, spec, shown, stubs).await?;
    for (index, interface) in spec.interfaces.iter().enumerate() {
        let put = api
            .put_network_interface(&network_interface(index, interface))
            .await;
        named(&format!("NetworkInterfaces[{index}]"), put)?;
    }
    let vsock = Vsock {
        guest_cid: GUEST_CID,
        uds_path: dir::VSOCK.to_owned(),
    };
    api.put_vsock(&vsock).await?;
    if let Some(mmds) = metadata_service(&spec.interfaces) {
        let put = api.put_mmds_config(&mmds).await;
        named("NetworkInterfaces' AllowMMDS", put)?;
    }
    Ok(())
}

/// Starts the guest of a VM that is configured. Only now a VMM finds that its devices are too many.
pub(super) async fn start(
    api: &Client,
    spec: &VmSpec,
    stubs: &StubDrives,
) -> Result<(), BootError> {
    let (drives, interfaces) = (1 + stubs.boot_drives().len(), spec.interfaces.len());
    let started = api.start_instance().await;
    if drives + interfaces <= FEW_DEVICES {
        return Ok(started?);
    }
    let fields = format!(
        "A VM with {drives} drives and {interfaces} network interfaces (ContainerCount, VolumeSlots, DriveMounts, NetworkInterfaces)"
    );
    named(&fields, started)
}

async fn telemetry(api: &Client, config: &Config, shown: &Shown) -> Result<(), BootError> {
    let level = config.log_levels.firecracker();
    let logger = Logger {
        log_path: Some(shown.log.clone()),
        level: level.map(|l| l.as_firecracker().to_owned()),
        show_level: Some(true),
        show_log_origin: Some(false),
    };
    named("LogFifoPath", api.put_logger(&logger).await)?;
    let metrics = Metrics {
        metrics_path: shown.metrics.clone(),
    };
    named("MetricsFifoPath", api.put_metrics(&metrics).await)
}

async fn drives(
    api: &Client,
    spec: &VmSpec,
    shown: &Shown,
    stubs: &StubDrives,
) -> Result<(), BootError> {
    let root = Drive {
        is_root_device: true,
        partuuid: spec.root.partuuid.clone(),
        cache_type: spec.root.cache_type.clone(),
        rate_limiter: spec.root.rate_limiter.clone(),
        ..Drive::new(ROOT_DRIVE, &shown.root, !spec.root.writable)
    };
    named("RootDrive", api.put_drive(&root).await)?;
    for stub in stubs.boot_drives() {
        let field = match stub.drive_mount {
            Some(index) => drive_mount_field(index),
            None => "ContainerCount or VolumeSlots".to_owned(),
        };
        named(&field, api.put_drive(&stub_drive(spec, stub)).await)?;
    }
    Ok(())
}

/// A slot as the VMM gets it. What cannot be changed later, a drive mount's limits and cache type, is set now.
fn stub_drive(spec: &VmSpec, stub: &BootDrive) -> Drive {
    let drive = Drive::new(&stub.drive_id, &stub.file_name, stub.read_only);
    match stub
        .drive_mount
        .and_then(|index| spec.drive_mounts.get(index))
    {
        None => drive,
        Some(mount) => Drive {
            cache_type: mount.cache_type.clone(),
            rate_limiter: mount.rate_limiter.clone(),
            ..drive
        },
    }
}

/// The VMM's name of an interface: they are counted from 1.
fn iface_id(index: usize) -> String {
    (index + 1).to_string()
}

fn network_interface(index: usize, interface: &Interface) -> NetworkInterface {
    NetworkInterface {
        iface_id: iface_id(index),
        host_dev_name: interface.tap.clone(),
        guest_mac: interface.mac.clone(),
        rx_rate_limiter: interface.rx.clone(),
        tx_rate_limiter: interface.tx.clone(),
    }
}

/// The metadata service, in the only version that the original's guests speak, if an interface allows it.
fn metadata_service(interfaces: &[Interface]) -> Option<MmdsConfig> {
    let allowed = interfaces.iter().enumerate().filter(|(_, i)| i.mmds);
    let network_interfaces: Vec<String> = allowed.map(|(index, _)| iface_id(index)).collect();
    (!network_interfaces.is_empty()).then_some(MmdsConfig {
        network_interfaces,
        version: Some(MmdsVersion::V1),
        ipv4_address: None,
        imds_compat: None,
    })
}

/// A refusal with the field of CreateVMRequest that it is about.
fn named(field: &str, result: Result<(), ApiError>) -> Result<(), BootError> {
    result.map_err(|error| match error {
        ApiError::Refused { .. } => BootError::Refused {
            field: field.to_owned(),
            source: Box::new(error),
        },
        error => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(mmds: bool) -> Interface {
        Interface {
            tap: "tap0".into(),
            mac: None,
            rx: None,
            tx: None,
            mmds,
            ip: None,
        }
    }

    #[test]
    fn the_metadata_service_is_on_the_interfaces_that_allow_it() {
        assert_eq!(metadata_service(&[interface(false)]), None);
        let mmds = metadata_service(&[interface(true), interface(false), interface(true)]);
        assert_eq!(mmds.unwrap().network_interfaces, ["1", "3"]);
    }
}
