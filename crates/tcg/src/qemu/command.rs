//! The command line: what machine QEMU emulates. Files come as inherited descriptors, so QEMU opens only
//! the kernel, the initrd and its own firmware.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde_json::{Value, json};

use crate::drive::{Drive, DriveMode};
use crate::model::{HugePages, MachineConfig};

/// Virtio devices of all kinds that a guest can have: microvm has 24 virtio-mmio transports, but with more
/// than 22 in use guests were seen to hang.
pub const MAX_DEVICES: usize = 22;

/// Block node that is attached for an instant during a swap, to make QEMU tell the guest of a new size
/// (see [`crate::machine`]). It is a file in memory: resizing it harms nothing.
pub const BELL_NODE: &str = "bell";

/// A drive at the start of the guest.
#[derive(Debug)]
pub struct PlannedDrive<'a> {
    /// The drive with its file.
    pub drive: &'a Drive,
    /// Copy of its file's descriptor that QEMU inherits.
    pub fd: OwnedFd,
}

/// Everything that goes into the command line.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Shown as the machine's name in process listings.
    pub id: &'a str,
    /// Processors and memory.
    pub machine: &'a MachineConfig,
    /// Path of the kernel.
    pub kernel: &'a str,
    /// Path of the initrd.
    pub initrd: Option<String>,
    /// Copy of the initrd that `initrd` refers to, if there had to be one.
    pub initrd_fd: Option<OwnedFd>,
    /// The kernel's arguments.
    pub cmdline: String,
    /// In the guest's order.
    pub drives: Vec<PlannedDrive<'a>>,
    /// File in memory behind [`BELL_NODE`].
    pub bell: File,
    /// Whether there is a source of random numbers.
    pub entropy: bool,
    /// QEMU's end of the vhost-user connection of the vsock device.
    pub vsock: Option<OwnedFd>,
    /// QEMU's end of the control connection.
    pub qmp: OwnedFd,
    /// QEMU's end of the serial console.
    pub console: OwnedFd,
}

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

/// A block node over the descriptor set `fdset`, of a fixed size: QEMU then cannot resize the file, and the
/// guest does not see a last partial sector.
#[must_use]
pub fn drive_node(name: &str, fdset: i64, size: u64, mode: DriveMode) -> Value {
    json!({
        "driver": "raw",
        "node-name": name,
        "read-only": mode.read_only,
        "size": size,
        "cache": { "direct": false, "no-flush": mode.ignore_flush },
        "file": {
            "driver": "file",
            "filename": format!("/dev/fdset/{fdset}"),
            "read-only": mode.read_only,
            // Firecracker takes no locks; two VMs may share a read-only file, and a writer may come first.
            "locking": "off",
            "aio": if mode.io_uring { "io_uring" } else { "threads" },
        },
    })
}

impl Plan<'_> {
    /// The arguments, without the program's name.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut args = Arguments::default();
        args.words(["-nodefaults", "-no-user-config", "-display", "none"]);
        // A reset, which is how most guests reboot, panic and power off, ends QEMU, as it ends Firecracker.
        args.words(["-no-reboot", "-S"]);
        args.option("-name", self.id.to_owned());
        args.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
        );
        self.machine(&mut args);
        self.boot(&mut args);
        self.control(&mut args);
        self.devices(&mut args);
        args.0
    }

    /// The descriptors that the arguments refer to.
    #[must_use]
    pub fn inherited(&self) -> Vec<RawFd> {
        let mut fds = vec![
            self.bell.as_raw_fd(),
            self.qmp.as_raw_fd(),
            self.console.as_raw_fd(),
        ];
        fds.extend(self.drives.iter().map(|planned| planned.fd.as_raw_fd()));
        fds.extend(self.vsock.as_ref().map(AsRawFd::as_raw_fd));
        fds.extend(self.initrd_fd.as_ref().map(AsRawFd::as_raw_fd));
        fds
    }

    fn machine(&self, args: &mut Arguments) {
        let vcpus = self.machine.vcpu_count;
        // No PIC and no PIT: on an ACPI machine of this kind the kernel does not initialize them, and a tick of the
        // PIT then arrives as vector 0, a "divide error" early in one boot of ten on a busy host.
        args.option(
            "-machine",
            "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,auto-kernel-cmdline=off,memory-backend=ram"
                .to_owned(),
        );
        args.words(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        let threads = if self.machine.smt && vcpus > 1 { 2 } else { 1 };
        args.option("-smp", format!("cpus={vcpus},sockets=1,threads={threads}"));
        args.option("-m", format!("{}M", self.machine.mem_size_mib));
        let bytes = self.machine.mem_size_mib as u64 * 1024 * 1024;
        let mut memory = json!({ "qom-type": "memory-backend-memfd", "id": "ram", "size": bytes, "share": true });
        if self.machine.huge_pages == HugePages::TwoMib {
            memory["hugetlb"] = json!(true);
            memory["hugetlbsize"] = json!(2 * 1024 * 1024);
        }
        args.json("-object", &memory);
    }

    fn boot(&self, args: &mut Arguments) {
        args.option("-kernel", self.kernel.to_owned());
        if let Some(initrd) = &self.initrd {
            args.option("-initrd", initrd.clone());
        }
        args.option("-append", self.cmdline.clone());
    }

    fn control(&self, args: &mut Arguments) {
        args.option(
            "-chardev",
            format!("socket,id=qmp,fd={}", self.qmp.as_raw_fd()),
        );
        args.words(["-mon", "chardev=qmp,mode=control"]);
        args.option(
            "-chardev",
            format!("socket,id=console,fd={}", self.console.as_raw_fd()),
        );
        args.words(["-serial", "chardev:console"]);
        // Gives `reboot=k` something to talk to, and SendCtrlAltDel a keyboard.
        args.words(["-device", "i8042"]);
    }

    fn devices(&self, args: &mut Arguments) {
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
                &drive_node(&node, fdset, drive.backing.size, drive.mode()),
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
        if self.entropy {
            args.json(
                "-object",
                &json!({ "qom-type": "rng-builtin", "id": "rng" }),
            );
            args.json(
                "-device",
                &json!({ "driver": "virtio-rng-device", "rng": "rng" }),
            );
        }
    }
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn words<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(OsString::from));
    }

    fn option(&mut self, name: &str, value: String) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.option(name, value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn the_machine() {
        let machine = MachineConfig {
            vcpu_count: 2,
            mem_size_mib: 256,
            smt: true,
            huge_pages: HugePages::TwoMib,
            ..MachineConfig::default()
        };
        let plan = Plan {
            id: "vm",
            machine: &machine,
            kernel: "a,b",
            initrd: None,
            initrd_fd: None,
            cmdline: "console=ttyS0".into(),
            drives: Vec::new(),
            bell: null().into(),
            entropy: true,
            vsock: Some(null()),
            qmp: null(),
            console: null(),
        };
        let args: Vec<String> = plan
            .arguments()
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect();
        let after = |name: &str| {
            let at = args.iter().position(|arg| arg == name).unwrap();
            args[at + 1].clone()
        };
        assert_eq!(after("-smp"), "cpus=2,sockets=1,threads=2");
        assert_eq!(after("-m"), "256M");
        assert_eq!(after("-kernel"), "a,b");
        assert!(after("-object").contains("\"hugetlb\":true"));
        assert!(
            args.iter()
                .any(|arg| arg.contains("vhost-user-vsock-device"))
        );
        assert!(args.iter().any(|arg| arg.contains("virtio-rng-device")));
        assert!(!args.iter().any(|arg| arg == "-initrd"));
        assert_eq!(plan.inherited().len(), 4);
    }

    #[test]
    fn nodes_have_a_fixed_size() {
        let mode = DriveMode {
            read_only: true,
            ignore_flush: false,
            io_uring: false,
        };
        let node = drive_node("n", 7, 1024, mode);
        assert_eq!(node["size"], 1024);
        assert_eq!(node["read-only"], true);
        assert_eq!(node["file"]["filename"], "/dev/fdset/7");
        assert_eq!(node["cache"]["no-flush"], false);
    }
}
