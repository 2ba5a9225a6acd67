//! What a VM will be: a control API request checked against the configuration.
//! Nothing is read or made here.

mod cpu_template;
mod drive;
mod error;
mod jail;
mod kernel_args;
mod network;

use std::path::PathBuf;
use std::time::Duration;

use fc_client::api::Balloon;
use fc_config::Config;
use fc_jailer::JailRequest;
use fc_proto::control::{CreateVMRequest, FirecrackerBalloonDevice};

/// Whether this host's CPU takes Firecracker's CPU templates.
pub use fc_config::is_intel as host_is_intel;

pub use cpu_template::CpuTemplate;
pub use drive::{DriveMount, RootDrive, drive_mount_field};
pub use error::SpecError;
pub use network::{Interface, Ip};

/// Bound on a VM's start when the request names none.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Most virtual CPUs that Firecracker gives a VM.
pub const MAX_VCPUS: u32 = 32;
/// Most containers, or volumes, that a VM can be asked to have slots for. What a VMM has room for is less,
/// and its own to refuse.
pub const MAX_SLOTS: u32 = 128;
/// Read-only slots for each container: one for its image, one for copies of files of the host.
const SHARED_PER_CONTAINER: u32 = 2;
/// Devices that every Firecracker has room for (the interrupts of x86).
const DEVICES: u32 = 19;
/// The root device and vsock.
const DEVICES_OF_EVERY_VM: u32 = 2;

/// Everything that defines a VM before it boots.
#[derive(Debug, Clone, PartialEq)]
pub struct VmSpec {
    /// Id of the VM.
    pub vm_id: String,
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Whether sibling threads are shown to the guest.
    pub smt: bool,
    /// Firecracker's CPU template; `None` for the host's CPU as it is.
    pub cpu_template: Option<CpuTemplate>,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd made for that kernel.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, exactly as it was given.
    pub kernel_args: String,
    /// The root device.
    pub root: RootDrive,
    /// What the host mounts in the guest, in this order.
    pub drive_mounts: Vec<DriveMount>,
    /// Network interfaces, in this order.
    pub interfaces: Vec<Interface>,
    /// The jail that the VMM runs in; `None` for no jail.
    pub jail: Option<JailRequest>,
    /// The balloon; `None` leaves the VM without one.
    pub balloon: Option<Balloon>,
    /// Containers that the VM has slots for, 1 to [`MAX_SLOTS`]. As in the original, a request for fewer than 1 is
    /// one for 1.
    pub containers: u32,
    /// Read-only slots for images: two for each container, less where devices run short, and
    /// those that were asked for.
    pub shared_slots: u32,
    /// Writable slots for volumes, at most [`MAX_SLOTS`].
    pub volume_slots: u32,
    /// Whether the VM ends with its last task.
    pub exit_after_all_tasks: bool,
    /// Bound on everything from here to an agent that answers.
    pub timeout: Duration,
    /// FIFO for the VMM's log that the caller reads; `None`: one of ours.
    pub log_fifo: Option<PathBuf>,
    /// FIFO for the VMM's metrics that the caller reads; `None`: one of ours.
    pub metrics_fifo: Option<PathBuf>,
}

impl VmSpec {
    /// Merges a request with the configuration: what the request leaves empty comes from there.
    ///
    /// `intel` says whether the host's CPU is a `GenuineIntel` amd64 one; only those have templates.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn new(config: &Config, request: &CreateVMRequest, intel: bool) -> Result<Self, SpecError> {
        let machine = request.MachineCfg.as_ref();
        let vcpus = set(machine.map_or(0, |m| m.VcpuCount)).unwrap_or(config.vcpu_count);
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(SpecError::Vcpus(vcpus));
        }
        let memory_mib = set(machine.map_or(0, |m| m.MemSizeMib)).unwrap_or(config.mem_size_mib);
        if memory_mib < config.min_mem_size_mib {
            return Err(SpecError::Memory {
                asked: memory_mib,
                least: config.min_mem_size_mib,
            });
        }
        let kernel = absolute("KernelImagePath", &request.KernelImagePath)?
            .unwrap_or_else(|| config.kernel_image_path.clone());
        let template = machine.map_or("", |m| &m.CPUTemplate);
        let interfaces = network::interfaces(
            &request.NetworkInterfaces,
            &config.default_network_interfaces,
        )?;
        let kernel_args = text(&request.KernelArgs).unwrap_or_else(|| config.kernel_args.clone());
        let mut spec = Self {
            vm_id: request.VMID.clone(),
            vcpus,
            memory_mib,
            smt: machine.map_or(config.smt_enabled, |m| m.HtEnabled),
            cpu_template: CpuTemplate::choose(template, &config.cpu_template, intel),
            initrd: config.initrd_for(&kernel).map(ToOwned::to_owned),
            kernel,
            kernel_args: kernel_args::with_address(kernel_args, &interfaces)?,
            root: drive::root_drive(config, request.RootDrive.as_ref())?,
            drive_mounts: drive::drive_mounts(&request.DriveMounts)?,
            interfaces,
            jail: request.JailerConfig.as_ref().map(jail::jail).transpose()?,
            balloon: request.BalloonDevice.as_ref().map(balloon).transpose()?,
            containers: containers(request.ContainerCount)?,
            shared_slots: slots("ReadOnlyVolumeSlots", request.ReadOnlyVolumeSlots)?,
            volume_slots: slots("VolumeSlots", request.VolumeSlots)?,
            exit_after_all_tasks: request.ExitAfterAllTasksDeleted,
            timeout: set(request.TimeoutSeconds)
                .map_or(DEFAULT_TIMEOUT, |s| Duration::from_secs(s.into())),
            log_fifo: absolute("LogFifoPath", &request.LogFifoPath)?,
            metrics_fifo: absolute("MetricsFifoPath", &request.MetricsFifoPath)?,
        };
        let images = SHARED_PER_CONTAINER * spec.containers;
        spec.shared_slots += images.min(spec.spare_devices());
        if spec.shared_slots < spec.containers {
            tracing::warn!(
                containers = spec.containers,
                images = spec.shared_slots,
                "Not all containers can have an image (of overlayfs, say): a VM has room for {DEVICES} devices"
            );
        }
        Ok(spec)
    }

    /// Devices that every VMM has room for beyond those that were asked for.
    fn spare_devices(&self) -> u32 {
        let asked =
            self.drive_mounts.len() + self.interfaces.len() + usize::from(self.balloon.is_some());
        let asked = u32::try_from(asked).unwrap_or(u32::MAX);
        [
            self.containers,
            self.shared_slots,
            self.volume_slots,
            DEVICES_OF_EVERY_VM,
        ]
        .into_iter()
        .fold(DEVICES.saturating_sub(asked), u32::saturating_sub)
    }
}

fn balloon(device: &FirecrackerBalloonDevice) -> Result<Balloon, SpecError> {
    fn number<T: TryFrom<i64>>(field: &str, value: i64) -> Result<T, SpecError> {
        T::try_from(value).map_err(|_| SpecError::Value {
            field: format!("BalloonDevice.{field}"),
            problem: format!("it cannot be {value}"),
        })
    }
    Ok(Balloon {
        amount_mib: number("AmountMib", device.AmountMib)?,
        deflate_on_oom: device.DeflateOnOom,
        stats_polling_interval_s: Some(number(
            "StatsPollingIntervals",
            device.StatsPollingIntervals,
        )?),
    })
}

/// A count below 1 is 1, which is no error: the original's clients may rely on it.
fn containers(count: i32) -> Result<u32, SpecError> {
    if count < 0 {
        tracing::warn!(count, "ContainerCount is negative: the VM has room for 1");
    }
    Ok(slots("ContainerCount", u32::try_from(count).unwrap_or(0))?.max(1))
}

fn slots(field: &str, count: u32) -> Result<u32, SpecError> {
    if count <= MAX_SLOTS {
        return Ok(count);
    }
    Err(SpecError::Value {
        field: field.to_owned(),
        problem: format!("{count} is more than {MAX_SLOTS}"),
    })
}

fn set(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn absolute(field: &str, path: &str) -> Result<Option<PathBuf>, SpecError> {
    match path {
        "" => Ok(None),
        path if path.starts_with('/') => Ok(Some(PathBuf::from(path))),
        path => Err(SpecError::RelativePath {
            field: field.to_owned(),
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::control::FirecrackerMachineConfiguration;
    use fc_proto::protobuf::MessageField;

    fn request(machine: FirecrackerMachineConfiguration) -> CreateVMRequest {
        CreateVMRequest {
            VMID: "vm".into(),
            MachineCfg: MessageField::some(machine),
            ..CreateVMRequest::default()
        }
    }

    #[test]
    fn an_empty_request_is_the_configuration() {
        let config = Config::default();
        let spec = VmSpec::new(&config, &CreateVMRequest::default(), true).unwrap();
        assert_eq!(spec.kernel_args, config.kernel_args);
        assert_eq!(spec.vcpus, config.vcpu_count);
        assert_eq!(spec.memory_mib, config.mem_size_mib);
        assert_eq!(spec.root.path, config.root_drive);
        assert!(!spec.root.writable);
        assert_eq!(
            (spec.containers, spec.timeout),
            (1, Duration::from_secs(60))
        );
    }

    #[test]
    fn a_request_overrides() {
        let config = Config {
            cpu_template: "T2".into(),
            smt_enabled: true,
            initrd_path: Some("/initrd".into()),
            ..Config::default()
        };
        let mut asked = request(FirecrackerMachineConfiguration {
            MemSizeMib: 512,
            ..FirecrackerMachineConfiguration::default()
        });
        asked.KernelImagePath = "/other/vmlinux".into();
        asked.KernelArgs = "b=1 a=2 b=3".into();
        asked.ContainerCount = -1;
        let spec = VmSpec::new(&config, &asked, true).unwrap();
        assert_eq!(spec.memory_mib, 512);
        assert_eq!(spec.kernel_args, "b=1 a=2 b=3");
        assert_eq!(spec.initrd, None, "an initrd belongs to one kernel");
        assert_eq!(spec.containers, 1);
        assert!(!spec.smt, "a machine configuration replaces smt_enabled");
        assert_eq!(spec.cpu_template, Some(CpuTemplate::Default("T2".into())));
        let amd = VmSpec::new(&config, &asked, false).unwrap();
        assert_eq!(amd.cpu_template, None);
    }

    #[test]
    fn refuses_by_name() {
        let config = Config::default();
        let many = request(FirecrackerMachineConfiguration {
            VcpuCount: 33,
            ..FirecrackerMachineConfiguration::default()
        });
        assert_eq!(VmSpec::new(&config, &many, true), Err(SpecError::Vcpus(33)));
        let small = request(FirecrackerMachineConfiguration {
            MemSizeMib: config.min_mem_size_mib - 1,
            ..FirecrackerMachineConfiguration::default()
        });
        assert!(matches!(
            VmSpec::new(&config, &small, true),
            Err(SpecError::Memory { .. })
        ));
        let relative = CreateVMRequest {
            LogFifoPath: "fifo".into(),
            ..CreateVMRequest::default()
        };
        assert!(matches!(
            VmSpec::new(&config, &relative, true),
            Err(SpecError::RelativePath { .. })
        ));
    }

    #[test]
    fn a_balloon() {
        let config = Config::default();
        let with = |amount, interval| CreateVMRequest {
            BalloonDevice: MessageField::some(FirecrackerBalloonDevice {
                AmountMib: amount,
                DeflateOnOom: true,
                StatsPollingIntervals: interval,
                ..FirecrackerBalloonDevice::default()
            }),
            ..CreateVMRequest::default()
        };
        let spec = VmSpec::new(&config, &with(64, 1), true).unwrap();
        assert_eq!(
            spec.balloon,
            Some(Balloon {
                amount_mib: 64,
                deflate_on_oom: true,
                stats_polling_interval_s: Some(1)
            })
        );
        for (request, field) in [
            (with(-1, 0), "AmountMib"),
            (with(0, 1 << 16), "StatsPollingIntervals"),
        ] {
            let error = VmSpec::new(&config, &request, true)
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with(&format!("BalloonDevice.{field}: ")),
                "{error}"
            );
        }
    }

    #[test]
    fn slots_that_nobody_asked_for_take_no_device_from_those_that_were() {
        let config = Config::default();
        let shared = |containers, volumes| {
            let request = CreateVMRequest {
                ContainerCount: containers,
                VolumeSlots: volumes,
                ..CreateVMRequest::default()
            };
            VmSpec::new(&config, &request, true).map(|spec| spec.shared_slots)
        };
        assert_eq!(shared(1, 0), Ok(2));
        assert_eq!(shared(5, 0), Ok(10));
        assert_eq!(shared(8, 0), Ok(9));
        assert_eq!(shared(8, 4), Ok(5));
        assert_eq!(shared(100, 0), Ok(0));
        let read_only = CreateVMRequest {
            ContainerCount: 8,
            ReadOnlyVolumeSlots: 3,
            ..CreateVMRequest::default()
        };
        let spec = VmSpec::new(&config, &read_only, true).unwrap();
        assert_eq!(spec.shared_slots, 3 + 6);
        assert!(
            matches!(shared(129, 0), Err(SpecError::Value { field, .. }) if field == "ContainerCount")
        );
        assert!(
            matches!(shared(1, 129), Err(SpecError::Value { field, .. }) if field == "VolumeSlots")
        );
    }
}
