//! The keys, their defaults and their limits.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::document::Object;
use crate::{ConfigError, LogLevels, NetworkInterface, cpu};

/// Firecracker's limit.
const VCPUS: RangeInclusive<u32> = 1..=32;
/// A VM reserves up to three drives for each; more than a VMM has room for is its own to refuse.
const CONTAINERS: RangeInclusive<u32> = 1..=128;
/// Up to 16 TiB.
const MEMORY_MIB: RangeInclusive<u32> = 1..=16 << 20;
/// From the least that mkfs gives a journal, up to ext4's 16 TiB with blocks of 4 KiB.
const DISK_MIB: RangeInclusive<u32> = 8..=16 << 20;

/// A copy travels as an image in the VM's directory: what does not fit is given as an image of its own.
const COPY_MIB: RangeInclusive<u32> = 0..=4096;
/// Up to 16 TiB; less than 64 MiB holds no image worth sharing.
const CACHE_MIB: RangeInclusive<u32> = 64..=16 << 20;

/// The runtime's configuration. Each field is a key of the file, of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The VMM; a name without `/` is looked for on `PATH`. Default none (`""`): the runtime chooses.
    pub firecracker_binary_path: Option<PathBuf>,
    /// The guest's kernel. Default `/var/lib/firecracker-containerd/runtime/default-vmlinux.bin`.
    pub kernel_image_path: PathBuf,
    /// The guest kernel's command line.
    /// Default `console=ttyS0 noapic reboot=k panic=1 pci=off nomodules rw`.
    pub kernel_args: String,
    /// The guest's root file system, an image or a block device.
    /// Default `/var/lib/firecracker-containerd/runtime/default-rootfs.img`.
    pub root_drive: PathBuf,
    /// Firecracker's CPU template of VMs whose request names none; empty means none. The emulator, which has no
    /// templates, starts them without. Default `T2` on Intel x86_64, else empty.
    pub cpu_template: String,
    /// What is logged. Default nothing set.
    pub log_levels: LogLevels,
    /// Whether VMs have simultaneous multithreading. Default false.
    pub smt_enabled: bool,
    /// The interfaces of a VM that asks for none. Default none.
    pub default_network_interfaces: Vec<NetworkInterface>,
    /// Where each VM has its directory. Default `/var/lib/firecracker-containerd/shim-base`.
    pub shim_base_dir: PathBuf,
    /// VMs in a jail.
    pub jailer: JailerConfig,

    /// Ours: the initrd made for `kernel_image_path`. Default none. Use [`Config::initrd_for`].
    pub initrd_path: Option<PathBuf>,
    /// Ours: the control service's socket. Default `/run/firecracker-containerd/control.sock`.
    pub control_address: PathBuf,
    /// Ours: containers that an annotated VM has room for if nobody says. Default 4, 1 to 128.
    pub default_container_count: u32,
    /// Ours: a VM's processors if nobody says. Default 1, 1 to 32.
    pub vcpu_count: u32,
    /// Ours: a VM's memory in MiB if nobody says. Default 128, not less than `min_mem_size_mib`.
    pub mem_size_mib: u32,
    /// Ours: what a VM needs in MiB on top of its container's own memory limit. Default 96.
    pub mem_overhead_mib: u32,
    /// Ours: the least memory in MiB that boots the guest. Default 72.
    pub min_mem_size_mib: u32,
    /// Ours: size in MiB of a container's writable disk, which is sparse. Default 10240, from 8.
    pub writable_disk_size_mib: u32,
    /// Ours: where shared images are kept. Default `/var/lib/firecracker-containerd/image-cache`.
    pub image_cache_dir: PathBuf,
    /// Ours: how large that directory may grow, in MiB; what VMs use stays. Default 20480, from 64.
    pub image_cache_size_mib: u32,
    /// Ours: most MiB of host files and directories copied for one container. Default 16, 0 to 4096.
    pub volume_copy_limit_mib: u32,
    /// Ours: the file to which every part appends what it did when. Default none.
    pub timeline_path: Option<PathBuf>,
    /// Ours: report guest process ids where the original does. Default false: the VMM's host process id.
    pub guest_pids: bool,
    /// Ours: answer CreateVM and GetVMInfo with the original's values: the paths of sockets as they are
    /// without a jail, and no FIFO paths from CreateVM. Default false: paths that exist.
    pub original_vm_info_paths: bool,
}

/// The key `jailer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JailerConfig {
    /// The OCI runtime that makes jails. Default none (`""`): see [`JailerConfig::runtime`].
    pub runc_binary_path: Option<PathBuf>,
    /// The jail's OCI configuration. Default `/etc/containerd/firecracker-runc-config.json`.
    pub runc_config_path: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        let library = Path::new("/var/lib/firecracker-containerd");
        Self {
            firecracker_binary_path: None,
            kernel_image_path: library.join("runtime/default-vmlinux.bin"),
            kernel_args: "console=ttyS0 noapic reboot=k panic=1 pci=off nomodules rw".to_owned(),
            root_drive: library.join("runtime/default-rootfs.img"),
            cpu_template: if cpu::is_intel() { "T2" } else { "" }.to_owned(),
            log_levels: LogLevels::default(),
            smt_enabled: false,
            default_network_interfaces: Vec::new(),
            shim_base_dir: library.join("shim-base"),
            jailer: JailerConfig::default(),
            initrd_path: None,
            control_address: "/run/firecracker-containerd/control.sock".into(),
            default_container_count: 4,
            vcpu_count: 1,
            mem_size_mib: 128,
            mem_overhead_mib: 96,
            min_mem_size_mib: 72,
            writable_disk_size_mib: 10240,
            image_cache_dir: library.join("image-cache"),
            image_cache_size_mib: 20480,
            volume_copy_limit_mib: 16,
            timeline_path: None,
            guest_pids: false,
            original_vm_info_paths: false,
        }
    }
}

impl Default for JailerConfig {
    fn default() -> Self {
        Self {
            runc_binary_path: None,
            runc_config_path: "/etc/containerd/firecracker-runc-config.json".into(),
        }
    }
}

impl Config {
    /// The initrd to boot `kernel` with: the configured one with the configured kernel, none with any other,
    /// whose modules it would not have.
    #[must_use]
    pub fn initrd_for(&self, kernel: &Path) -> Option<&Path> {
        self.initrd_path
            .as_deref()
            .filter(|_| kernel == self.kernel_image_path)
    }

    pub(crate) fn read(file: &mut Object<'_>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let c = &mut config;
        set(
            &mut c.firecracker_binary_path,
            file.read_with("firecracker_binary_path", binary)?,
        );
        set(
            &mut c.kernel_image_path,
            file.read_with("kernel_image_path", absolute)?,
        );
        set(&mut c.kernel_args, file.read("kernel_args")?);
        set(&mut c.root_drive, file.read_with("root_drive", absolute)?);
        set(&mut c.cpu_template, file.read("cpu_template")?);
        set(
            &mut c.log_levels,
            file.read_with("log_levels", LogLevels::parse)?,
        );
        set(&mut c.smt_enabled, file.read("smt_enabled")?);
        let interfaces = file.objects("default_network_interfaces", NetworkInterface::read)?;
        set(&mut c.default_network_interfaces, interfaces);
        set(
            &mut c.shim_base_dir,
            file.read_with("shim_base_dir", absolute)?,
        );
        set(&mut c.jailer, file.object("jailer", JailerConfig::read)?);

        set(&mut c.initrd_path, file.read_with("initrd_path", optional)?);
        set(
            &mut c.control_address,
            file.read_with("control_address", absolute)?,
        );
        set(
            &mut c.default_container_count,
            file.read_with("default_container_count", within(CONTAINERS))?,
        );
        set(
            &mut c.vcpu_count,
            file.read_with("vcpu_count", within(VCPUS))?,
        );
        let memory = file.read_with("mem_size_mib", within(MEMORY_MIB))?;
        set(&mut c.mem_size_mib, memory);
        set(
            &mut c.mem_overhead_mib,
            file.read_with("mem_overhead_mib", within(0..=*MEMORY_MIB.end()))?,
        );
        set(
            &mut c.min_mem_size_mib,
            file.read_with("min_mem_size_mib", within(MEMORY_MIB))?,
        );
        set(
            &mut c.writable_disk_size_mib,
            file.read_with("writable_disk_size_mib", within(DISK_MIB))?,
        );
        set(
            &mut c.image_cache_dir,
            file.read_with("image_cache_dir", absolute)?,
        );
        set(
            &mut c.image_cache_size_mib,
            file.read_with("image_cache_size_mib", within(CACHE_MIB))?,
        );
        set(
            &mut c.volume_copy_limit_mib,
            file.read_with("volume_copy_limit_mib", within(COPY_MIB))?,
        );
        set(
            &mut c.timeline_path,
            file.read_with("timeline_path", optional)?,
        );
        set(&mut c.guest_pids, file.read("guest_pids")?);
        set(
            &mut c.original_vm_info_paths,
            file.read("original_vm_info_paths")?,
        );

        if config.mem_size_mib < config.min_mem_size_mib {
            return Err(file.invalid(format!(
                "mem_size_mib ({}) is less than min_mem_size_mib ({}), the least that boots the guest",
                config.mem_size_mib, config.min_mem_size_mib
            )));
        }
        Ok(config)
    }
}

impl JailerConfig {
    /// The OCI runtime that makes jails: `runc`, wherever on `PATH` it is, if the configuration names none.
    #[must_use]
    pub fn runtime(&self) -> &Path {
        self.runc_binary_path
            .as_deref()
            .unwrap_or(Path::new("runc"))
    }

    fn read(object: &mut Object<'_>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        set(
            &mut config.runc_binary_path,
            object.read_with("runc_binary_path", binary)?,
        );
        set(
            &mut config.runc_config_path,
            object.read_with("runc_config_path", absolute)?,
        );
        Ok(config)
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn within(range: RangeInclusive<u32>) -> impl FnOnce(u32) -> Result<u32, String> {
    move |value| {
        if range.contains(&value) {
            Ok(value)
        } else {
            Err(format!(
                "{value} is not between {} and {}",
                range.start(),
                range.end()
            ))
        }
    }
}

/// A path that means the same in every process: the VM's shim and VMM run in the VM's own directory.
fn absolute(path: PathBuf) -> Result<PathBuf, String> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("{path:?} is not an absolute path"))
    }
}

fn optional(path: PathBuf) -> Result<Option<PathBuf>, String> {
    if path.as_os_str().is_empty() {
        Ok(None)
    } else {
        absolute(path).map(Some)
    }
}

fn binary(path: PathBuf) -> Result<Option<PathBuf>, String> {
    if path.components().count() == 1 && path.file_name() == Some(path.as_os_str()) {
        return Ok(Some(path));
    }
    optional(path).map_err(|problem| format!("{problem}, nor the name of a program on PATH"))
}
