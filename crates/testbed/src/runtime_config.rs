//! The shim's configuration file for a private containerd.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// Kernel arguments for the guest of `firecracker-image`: console on the serial
/// port, quiet but for warnings and panics, reset on panic so that the VMM ends.
pub const KERNEL_ARGS: &str = "console=ttyS0 quiet reboot=k panic=1 pci=off 8250.nr_uarts=1";

/// Paths that the configuration names.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The VMM to use.
    pub vmm: PathBuf,
    /// Output directory of `firecracker-image`.
    pub guest: PathBuf,
    /// Directory for VM directories, image cache and timeline.
    pub dir: PathBuf,
}

impl Layout {
    /// Base directory of the VM directories.
    #[must_use]
    pub fn shim_base(&self) -> PathBuf {
        self.dir.join("vms")
    }

    /// The timeline file.
    #[must_use]
    pub fn timeline(&self) -> PathBuf {
        self.dir.join("timeline.jsonl")
    }

    /// The configuration as a JSON object; a caller may change keys before writing it.
    #[must_use]
    pub fn config(&self) -> Map<String, Value> {
        let object = json!({
            "firecracker_binary_path": self.vmm,
            "kernel_image_path": self.guest.join("default-vmlinux.bin"),
            "kernel_args": KERNEL_ARGS,
            "initrd_path": self.guest.join("default-initrd.img"),
            "root_drive": self.guest.join("default-rootfs.img"),
            "shim_base_dir": self.shim_base(),
            "image_cache_dir": self.dir.join("image-cache"),
            // A daemon of the machine's is not to be asked.
            "control_address": self.dir.join("control.sock"),
            "timeline_path": self.timeline(),
        });
        match object {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// Writes a configuration file.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, config: &Map<String, Value>) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(config)?;
    text.push('\n');
    std::fs::write(path, text)
}
