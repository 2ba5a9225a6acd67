//! What the tests need of the machine, and what they have in common.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use fc_config::Config;
use fc_proto::control::{CreateVMRequest, FirecrackerDriveMount, FirecrackerMachineConfiguration};
use fc_proto::protobuf::MessageField;
use fc_vm::dir::VmDir;
use fc_vm::machine::{BootError, Machine, Progress, VmSpec, boot, host_is_intel};
use fc_vm::state::{self, State};
use fc_vm::timeline::Timeline;

/// Bound on a guest's end, and on that of a process. It catches what never comes, and no more.
pub const BOUND: Duration = Duration::from_secs(120);

/// What the tests use of the machine.
pub struct Host {
    /// The runtime's configuration; a test may change it.
    pub config: Config,
    /// Whether the host's CPU has templates; a test may pretend.
    pub intel: bool,
    /// Where everything of the test is.
    pub base: tempfile::TempDir,
}

impl Host {
    /// `None`, said aloud, where something is missing.
    pub fn find() -> Option<Self> {
        let missing = |what: &str| {
            println!("SKIPPED: {what}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return missing("needs root");
        }
        let var = |name| std::env::var_os(name).map(PathBuf::from);
        let vmm =
            var("FIRECRACKER_BIN").or_else(|| Some(var("FC_BIN_DIR")?.join("firecracker-tcg")));
        let Some(vmm) = vmm.filter(|path| path.exists()) else {
            return missing("no VMM (FIRECRACKER_BIN, FC_BIN_DIR)");
        };
        let Some(guest) = var("FC_GUEST_DIR").filter(|dir| dir.join("default-rootfs.img").exists())
        else {
            return missing("no guest (FC_GUEST_DIR)");
        };
        Some(Self {
            config: Config {
                firecracker_binary_path: Some(vmm),
                kernel_image_path: guest.join("default-vmlinux.bin"),
                initrd_path: Some(guest.join("default-initrd.img")).filter(|path| path.exists()),
                root_drive: guest.join("default-rootfs.img"),
                ..Config::default()
            },
            intel: host_is_intel(),
            base: tempfile::tempdir().unwrap(),
        })
    }

    /// The directory of a VM, in a namespace with the longest name there is.
    pub fn dir(&self, vm_id: &str) -> Leftovers {
        let dir = VmDir::new(&self.base.path().join("vms"), &"n".repeat(76), vm_id).unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        Leftovers(dir)
    }

    /// Boots the VM of a request in its directory.
    pub async fn boot(
        &self,
        dir: &Leftovers,
        request: &CreateVMRequest,
        progress: &Progress,
    ) -> Result<Machine, BootError> {
        let spec = VmSpec::new(&self.config, request, self.intel).unwrap();
        let mut state = State::new(&dir.0);
        let timeline = Timeline::default();
        boot(&dir.0, &self.config, spec, &mut state, &timeline, progress).await
    }

    /// An ext4 image with one file.
    pub fn image(&self, name: &str) -> String {
        let content = self.base.path().join("content");
        std::fs::create_dir_all(&content).unwrap();
        std::fs::write(content.join("hello"), "hello").unwrap();
        let image = self.base.path().join(name);
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-d"])
            .arg(&content)
            .arg(&image)
            .arg("4M")
            .output();
        assert!(made.unwrap().status.success());
        image.display().to_string()
    }
}

/// The directory of a VM, whose leftovers go also when the test fails.
pub struct Leftovers(VmDir);

impl Leftovers {
    /// Removes what a VM that ended left, which must work and be all.
    pub fn undo(&self) {
        let failed = state::undo(&self.0);
        assert!(failed.is_empty(), "{failed:?}");
        assert!(!self.0.path().exists());
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if self.0.path().exists() {
            println!("undone after a failure: {:?}", state::undo(&self.0));
        }
    }
}

impl Host {
    /// Puts the VMM where it can have a list of what a jail must show it, and names the jail's template and runtime.
    pub fn with_jailer(&mut self, runtime: &str) {
        let vmm = self.config.firecracker_binary_path.take().unwrap();
        let linked = self.base.path().join("vmm");
        std::os::unix::fs::symlink(&vmm, &linked).unwrap();
        // Firecracker has no such option, and needs no list.
        let paths = Command::new(&vmm)
            .arg("--print-jail-paths")
            .output()
            .unwrap();
        if paths.status.success() {
            std::fs::write(self.base.path().join("vmm.jail.json"), paths.stdout).unwrap();
        }
        self.config.firecracker_binary_path = Some(linked);
        let template = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/firecracker-runc-config.json"
        );
        self.config.jailer.runc_config_path = template.into();
        self.config.jailer.runc_binary_path = Some(runtime.into());
    }
}

/// A small VM.
pub fn request() -> CreateVMRequest {
    CreateVMRequest {
        VMID: "v".repeat(76),
        MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
            MemSizeMib: 192,
            VcpuCount: 1,
            ..FirecrackerMachineConfiguration::default()
        }),
        // Emulated, on a busy machine: this only catches what never comes.
        TimeoutSeconds: 300,
        ..CreateVMRequest::default()
    }
}

/// A drive mount of an ext4 image.
pub fn mount(host_path: String, vm_path: &str) -> FirecrackerDriveMount {
    FirecrackerDriveMount {
        HostPath: host_path,
        VMPath: vm_path.into(),
        FilesystemType: "ext4".into(),
        ..FirecrackerDriveMount::default()
    }
}
