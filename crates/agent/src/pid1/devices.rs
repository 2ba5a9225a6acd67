//! Drivers of virtio devices that not every VM has, and that the initrd therefore does not load.

use std::fs;
use std::path::Path;

use crate::modules;
use crate::say;

const DEVICES: &str = "/sys/bus/virtio/devices";
/// Device types (Virtual I/O Device specification, section 5) and the modules that drive them.
const DRIVERS: [(u32, &str); 3] = [(1, "virtio_net"), (4, "virtio_rng"), (5, "virtio_balloon")];

/// Loads the drivers of those devices that have none. A device without one is only said: the
/// VM's containers may not need it.
pub fn load_drivers() {
    for module in missing(Path::new(DEVICES)) {
        if let Err(error) = modules::load(module) {
            say!("No driver for a device: {error}");
        }
    }
}

/// The modules for the devices without a driver.
fn missing(devices: &Path) -> Vec<&'static str> {
    let Ok(entries) = fs::read_dir(devices) else {
        return Vec::new();
    };
    let mut modules: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|device| !device.join("driver").exists())
        .filter_map(|device| module(&fs::read_to_string(device.join("device")).ok()?))
        .collect();
    modules.sort_unstable();
    modules.dedup();
    modules
}

/// The module for a device type as sysfs shows it, `0x0005`.
fn module(device: &str) -> Option<&'static str> {
    let device = u32::from_str_radix(device.trim().strip_prefix("0x")?, 16).ok()?;
    let (_, module) = DRIVERS.iter().find(|(kind, _)| *kind == device)?;
    Some(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_without_a_driver() {
        let devices = tempfile::tempdir().unwrap();
        let device = |name: &str, kind: &str| {
            let path = devices.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("device"), kind).unwrap();
            path
        };
        device("virtio0", "0x0005\n");
        device("virtio1", "0x0005\n");
        device("virtio2", "0x0002\n");
        fs::create_dir(device("virtio3", "0x0001\n").join("driver")).unwrap();
        assert_eq!(missing(devices.path()), ["virtio_balloon"]);
        assert!(missing(Path::new("/nonexistent")).is_empty());
    }
}
