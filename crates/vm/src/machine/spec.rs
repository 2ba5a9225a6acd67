//! What a VM will be: a control API request checked against the configuration.
//! Pure: nothing is read or made here.

use std::path::PathBuf;
use std::time::Duration;

use fc_client::api::{RateLimiter, TokenBucket};
use fc_config::Config;
use fc_proto::control::{
    CreateVMRequest, FirecrackerRateLimiter, FirecrackerRootDrive, FirecrackerTokenBucket,
};

/// Bound on a VM's start when the request names none.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Most virtual CPUs that Firecracker gives a VM.
pub const MAX_VCPUS: u32 = 32;

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
    pub cpu_template: Option<String>,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initrd made for that kernel.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, exactly as it was given.
    pub kernel_args: String,
    /// The root device.
    pub root: RootDrive,
    /// Containers that the VM has slots for, at least 1.
    pub containers: u32,
    /// Whether the VM ends with its last task.
    pub exit_after_all_tasks: bool,
    /// Bound on everything from here to an agent that answers.
    pub timeout: Duration,
    /// FIFO for the VMM's log that the caller reads; `None`: one of ours.
    pub log_fifo: Option<PathBuf>,
    /// FIFO for the VMM's metrics that the caller reads; `None`: one of ours.
    pub metrics_fifo: Option<PathBuf>,
}

/// The VM's root device.
#[derive(Debug, Clone, PartialEq)]
pub struct RootDrive {
    /// Image file or block device on the host.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub writable: bool,
    /// Partition to boot from instead of the whole device.
    pub partuuid: Option<String>,
    /// Firecracker's cache type, `Unsafe` or `Writeback`.
    pub cache_type: Option<String>,
    /// Limits on the device.
    pub rate_limiter: Option<RateLimiter>,
}

/// Why a request describes no VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A field of the request is not supported.
    #[error("{field} is not supported yet")]
    Unsupported {
        /// The field of CreateVMRequest.
        field: &'static str,
    },
    /// The number of virtual CPUs is out of range.
    #[error("A VM has 1 to {MAX_VCPUS} vCPUs, not {0}")]
    Vcpus(u32),
    /// Too little memory to boot.
    #[error(
        "A VM with {asked} MiB of memory cannot boot: the guest needs at least {least} MiB (config key min_mem_size_mib)"
    )]
    Memory {
        /// MiB asked for.
        asked: u32,
        /// MiB needed.
        least: u32,
    },
    /// A path must start with `/`.
    #[error("{field} must be an absolute path, not {path:?}")]
    RelativePath {
        /// The field of CreateVMRequest.
        field: &'static str,
        /// Its value.
        path: String,
    },
}

impl VmSpec {
    /// Merges a request with the configuration: what the request leaves empty comes from there.
    ///
    /// `intel` says whether the host's CPU is a `GenuineIntel` amd64 one; only those have templates.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn new(config: &Config, request: &CreateVMRequest, intel: bool) -> Result<Self, SpecError> {
        refuse_unsupported(request)?;
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
        let template = machine
            .and_then(|m| text(&m.CPUTemplate))
            .or_else(|| text(&config.cpu_template));
        let kernel = absolute("KernelImagePath", &request.KernelImagePath)?
            .unwrap_or_else(|| config.kernel_image_path.clone());
        Ok(Self {
            vm_id: request.VMID.clone(),
            vcpus,
            memory_mib,
            smt: machine.map_or(config.smt_enabled, |m| m.HtEnabled),
            cpu_template: template.filter(|_| intel),
            initrd: config.initrd_for(&kernel).map(ToOwned::to_owned),
            kernel,
            kernel_args: text(&request.KernelArgs).unwrap_or_else(|| config.kernel_args.clone()),
            root: root_drive(config, request.RootDrive.as_ref())?,
            containers: u32::try_from(request.ContainerCount).map_or(1, |n| n.max(1)),
            exit_after_all_tasks: request.ExitAfterAllTasksDeleted,
            timeout: set(request.TimeoutSeconds)
                .map_or(DEFAULT_TIMEOUT, |s| Duration::from_secs(s.into())),
            log_fifo: absolute("LogFifoPath", &request.LogFifoPath)?,
            metrics_fifo: absolute("MetricsFifoPath", &request.MetricsFifoPath)?,
        })
    }
}

/// Whether this host's CPU takes Firecracker's CPU templates.
#[must_use]
pub fn host_is_intel() -> bool {
    cfg!(target_arch = "x86_64")
        && std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| {
            text.lines()
                .any(|l| l.starts_with("vendor_id") && l.ends_with("GenuineIntel"))
        })
}

fn refuse_unsupported(request: &CreateVMRequest) -> Result<(), SpecError> {
    let fields = [
        (!request.DriveMounts.is_empty(), "DriveMounts"),
        (!request.NetworkInterfaces.is_empty(), "NetworkInterfaces"),
        (request.JailerConfig.is_some(), "JailerConfig"),
        (request.BalloonDevice.is_some(), "BalloonDevice"),
    ];
    match fields.into_iter().find(|(present, _)| *present) {
        Some((_, field)) => Err(SpecError::Unsupported { field }),
        None => Ok(()),
    }
}

fn root_drive(
    config: &Config,
    request: Option<&FirecrackerRootDrive>,
) -> Result<RootDrive, SpecError> {
    let Some(drive) = request else {
        return Ok(RootDrive {
            path: config.root_drive.clone(),
            writable: false,
            partuuid: None,
            cache_type: None,
            rate_limiter: None,
        });
    };
    Ok(RootDrive {
        path: absolute("RootDrive.HostPath", &drive.HostPath)?
            .unwrap_or_else(|| config.root_drive.clone()),
        writable: drive.IsWritable,
        partuuid: text(&drive.Partuuid),
        cache_type: text(&drive.CacheType),
        rate_limiter: drive.RateLimiter.as_ref().map(rate_limiter),
    })
}

fn rate_limiter(limiter: &FirecrackerRateLimiter) -> RateLimiter {
    RateLimiter {
        bandwidth: limiter.Bandwidth.as_ref().map(token_bucket),
        ops: limiter.Ops.as_ref().map(token_bucket),
    }
}

/// Only what is greater than zero counts as set ([VMC-12]).
fn token_bucket(bucket: &FirecrackerTokenBucket) -> TokenBucket {
    let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
    TokenBucket {
        one_time_burst: positive(bucket.OneTimeBurst),
        refill_time: positive(bucket.RefillTime).unwrap_or_default(),
        size: positive(bucket.Capacity).unwrap_or_default(),
    }
}

fn set(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn absolute(field: &'static str, path: &str) -> Result<Option<PathBuf>, SpecError> {
    match path {
        "" => Ok(None),
        path if path.starts_with('/') => Ok(Some(PathBuf::from(path))),
        path => Err(SpecError::RelativePath {
            field,
            path: path.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::control::{FirecrackerMachineConfiguration, JailerConfig};
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
        assert_eq!(spec.cpu_template.as_deref(), Some("T2"));
        let amd = VmSpec::new(&config, &asked, false).unwrap();
        assert_eq!(amd.cpu_template, None);
    }

    #[test]
    fn refuses_by_name() {
        let config = Config::default();
        let jailed = CreateVMRequest {
            JailerConfig: MessageField::some(JailerConfig::default()),
            ..CreateVMRequest::default()
        };
        assert_eq!(
            VmSpec::new(&config, &jailed, true),
            Err(SpecError::Unsupported {
                field: "JailerConfig"
            })
        );
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
}
