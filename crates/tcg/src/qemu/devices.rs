//! The virtio devices on QEMU's command line, and the names by which they are spoken of later.

use std::os::fd::AsRawFd;

use serde_json::{Value, json};

use super::command::{Arguments, Link, Plan, PlannedDrive};
use crate::drive::{DriveFile, DriveMode};

/// Virtio devices of all kinds that a guest can have: microvm has 24 virtio-mmio transports, but with more
/// than 22 in use guests were seen to hang.
pub const MAX_DEVICES: usize = 22;

/// Block node that is attached for an instant during a swap, to make QEMU tell the guest of a new size
/// (see [`crate::machine`]). It is a file in memory: resizing it harms nothing.
pub const BELL_NODE: &str = "bell";

/// Id of the balloon device.
pub const BALLOON_ID: &str = "balloon";

/// Id of the virtio device of the drive with this index.
#[must_use]
pub fn drive_device_id(index: usize) -> String {
    format!("drive{index}")
}

/// Name of the block node of a drive's file, after `swaps` swaps.
#[must_use]
pub fn drive_node_name(index: usize, swaps: u64) -> String {
    format!("file{index}-{swaps}")
}

/// A block node over the descriptor set `fdset`, which holds `file`, of a fixed size: QEMU then cannot resize the
/// file, and the guest does not see a last partial sector.
#[must_use]
pub fn drive_node(name: &str, fdset: i64, file: &DriveFile, mode: DriveMode) -> Value {
    // QEMU's driver for each refuses the other.
    let driver = match file.block_device {
        true => "host_device",
        false => "file",
    };
    json!({
        "driver": "raw",
        "node-name": name,
        "read-only": mode.read_only,
        "size": file.size,
        "cache": { "direct": false, "no-flush": mode.ignore_flush },
        "file": {
            "driver": driver,
            "filename": format!("/dev/fdset/{fdset}"),
            "read-only": mode.read_only,
            // Firecracker takes no locks; two VMs may share a read-only file, and a writer may come first.
            "locking": "off",
            "aio": if mode.io_uring { "io_uring" } else { "threads" },
        },
    })
}

impl Plan<'_> {
    /// Adds all devices, each kind in the guest's order.
    pub(super) fn devices(&self, args: &mut Arguments) {
        args.option("-add-fd", format!("fd={},set=0", self.bell.as_raw_fd()));
        args.json(
            "-blockdev",
            &json!({ "driver": "file", "node-name": BELL_NODE, "filename": "/dev/fdset/0", "locking": "off" }),
        );
        for (index, PlannedDrive { drive, fd }) in self.drives.iter().enumerate() {
            let fdset = i64::try_from(index).unwrap_or(i64::MAX).saturating_add(1);
            args.option("-add-fd", format!("fd={},set={fdset}", fd.as_raw_fd()));
            let node = drive_node_name(index, 0);
            args.json(
                "-blockdev",
                &drive_node(&node, fdset, &drive.backing, drive.mode()),
            );
            args.json(
                "-device",
                &json!({
                    "driver": "virtio-blk-device",
                    "id": drive_device_id(index),
                    "drive": node,
                    "serial": drive.backing.serial,
                    "share-rw": true,
                    // As Firecracker's device: one queue, neither discard nor write-zeroes.
                    "num-queues": 1,
                    "discard": false,
                    "write-zeroes": false,
                }),
            );
        }
        for (index, planned) in self.interfaces.iter().enumerate() {
            let netdev = format!("net{index}");
            let fd = planned.link.as_raw_fd().to_string();
            let backend = match &planned.link {
                Link::Tap(_) => json!({ "type": "tap", "id": netdev, "fd": fd }),
                Link::Socket(_) => {
                    json!({ "type": "dgram", "id": netdev, "local": { "type": "fd", "str": fd } })
                }
            };
            args.json("-netdev", &backend);
            let mac = planned.mac.to_string();
            args.json(
                "-device",
                &json!({ "driver": "virtio-net-device", "netdev": netdev, "mac": mac }),
            );
        }
        if let Some(balloon) = self.balloon {
            args.json(
                "-device",
                &json!({
                    "driver": "virtio-balloon-device",
                    "id": BALLOON_ID,
                    "deflate-on-oom": balloon.deflate_on_oom,
                    "free-page-reporting": balloon.free_page_reporting,
                }),
            );
        }
        if let Some(vsock) = &self.vsock {
            args.option(
                "-chardev",
                format!("socket,id=vsock,fd={}", vsock.as_raw_fd()),
            );
            args.json(
                "-device",
                &json!({ "driver": "vhost-user-vsock-device", "chardev": "vsock" }),
            );
        }
        if let Some(entropy) = &self.entropy {
            args.option(
                "-chardev",
                format!("socket,id=entropy,fd={}", entropy.as_raw_fd()),
            );
            args.json(
                "-object",
                &json!({ "qom-type": "rng-egd", "id": "rng", "chardev": "entropy" }),
            );
            args.json(
                "-device",
                &json!({ "driver": "virtio-rng-device", "rng": "rng" }),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_a_fixed_size() {
        let mode = DriveMode {
            read_only: true,
            ignore_flush: false,
            io_uring: false,
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1024 + 1).unwrap();
        let mut file = DriveFile::open(file.path().to_str().unwrap(), true).unwrap();
        let node = drive_node("n", 7, &file, mode);
        assert_eq!(node["size"], 1024);
        assert_eq!(node["file"]["driver"], "file");
        assert_eq!(node["read-only"], true);
        assert_eq!(node["file"]["filename"], "/dev/fdset/7");
        assert_eq!(node["cache"]["no-flush"], false);
        file.block_device = true;
        let node = drive_node("n", 7, &file, mode);
        assert_eq!(node["file"]["driver"], "host_device");
    }
}
