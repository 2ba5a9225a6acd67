//! The command line: what machine QEMU emulates. Files come as inherited descriptors, so QEMU opens only
//! the kernel, the initrd and its own firmware.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde_json::{Value, json};

use crate::console::SerialPort;
use crate::drive::Drive;
use crate::model::{BalloonConfig, HugePages, MacAddress, MachineConfig};

/// Descriptor sets of the serial console's ends. The drives' count from 0, and QEMU takes the lowest that is free.
const CONSOLE_OUTPUT_SET: u32 = 1000;
const CONSOLE_INPUT_SET: u32 = 1001;

/// A drive at the start of the guest.
#[derive(Debug)]
pub struct PlannedDrive<'a> {
    /// The drive with its file.
    pub drive: &'a Drive,
    /// Copy of its file's descriptor that QEMU inherits.
    pub fd: OwnedFd,
}

/// A network interface at the start of the guest.
#[derive(Debug)]
pub struct PlannedInterface {
    /// The guest's address.
    pub mac: MacAddress,
    /// What it is connected to.
    pub link: Link,
}

/// A descriptor that QEMU inherits, through which an interface's frames go.
#[derive(Debug)]
pub enum Link {
    /// A tap device.
    Tap(OwnedFd),
    /// A datagram socket; a datagram is a frame.
    Socket(OwnedFd),
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        let (Self::Tap(fd) | Self::Socket(fd)) = self;
        fd.as_raw_fd()
    }
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
    /// File in memory behind [`super::BELL_NODE`].
    pub bell: File,
    /// In the guest's order.
    pub interfaces: Vec<PlannedInterface>,
    /// The balloon.
    pub balloon: Option<&'a BalloonConfig>,
    /// QEMU's end of the connection that random numbers come from.
    pub entropy: Option<OwnedFd>,
    /// QEMU's end of the vhost-user connection of the vsock device.
    pub vsock: Option<OwnedFd>,
    /// QEMU's end of the control connection.
    pub qmp: OwnedFd,
    /// QEMU's ends of the serial console.
    pub console: SerialPort,
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
            self.console.output.as_raw_fd(),
            self.console.input.as_raw_fd(),
        ];
        fds.extend(self.drives.iter().map(|planned| planned.fd.as_raw_fd()));
        fds.extend(
            self.interfaces
                .iter()
                .map(|planned| planned.link.as_raw_fd()),
        );
        let optional = [&self.vsock, &self.entropy];
        fds.extend(optional.into_iter().flatten().map(AsRawFd::as_raw_fd));
        fds.extend(self.initrd_fd.as_ref().map(AsRawFd::as_raw_fd));
        fds
    }

    fn machine(&self, args: &mut Arguments) {
        // No PIC and no PIT: on an ACPI machine of this kind the kernel does not initialize them, and a tick of the
        // PIT then arrives as vector 0, a "divide error" early in one boot of ten on a busy host.
        args.option(
            "-machine",
            "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=on,auto-kernel-cmdline=off,memory-backend=ram"
                .to_owned(),
        );
        // Not SeaBIOS, the default: it drives the virtio-blk devices and takes up to 256 KiB for that at the top of
        // memory, where QEMU puts the end of the initrd too. qboot touches no device, and keeps the ACPI tables low.
        args.words(["-bios", "qboot.rom"]);
        args.words(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        args.option("-smp", self.processors());
        args.option("-m", format!("{}M", self.machine.mem_size_mib));
        let bytes = self.machine.mem_size_mib as u64 * 1024 * 1024;
        let mut memory = json!({ "qom-type": "memory-backend-memfd", "id": "ram", "size": bytes, "share": true });
        if self.machine.huge_pages == HugePages::TwoMib {
            memory["hugetlb"] = json!(true);
            memory["hugetlbsize"] = json!(2 * 1024 * 1024);
        }
        args.json("-object", &memory);
    }

    /// A single processor has room for a second one, which never comes: otherwise QEMU drops the memory barriers of
    /// what the guest runs. But devices run in threads of their own, and without a barrier a guest can miss that it
    /// must notify one, or that it was notified (2 of 1,000 tries of a litmus test).
    fn processors(&self) -> String {
        match (self.machine.vcpu_count, self.machine.smt) {
            (1, _) => "cpus=1,maxcpus=2,sockets=2,threads=1".to_owned(),
            (vcpus, smt) => format!("cpus={vcpus},sockets=1,threads={}", u8::from(smt) + 1),
        }
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
        for (set, fd) in [
            (CONSOLE_OUTPUT_SET, &self.console.output),
            (CONSOLE_INPUT_SET, &self.console.input),
        ] {
            args.option("-add-fd", format!("fd={},set={set}", fd.as_raw_fd()));
        }
        // Without `append` QEMU would truncate it, which a pipe refuses.
        args.option(
            "-chardev",
            format!(
                "file,id=console,append=on,path=/dev/fdset/{CONSOLE_OUTPUT_SET},\
                 input-path=/dev/fdset/{CONSOLE_INPUT_SET}"
            ),
        );
        args.words(["-serial", "chardev:console"]);
        // Gives `reboot=k` something to talk to, and SendCtrlAltDel a keyboard.
        args.words(["-device", "i8042"]);
    }
}

#[derive(Default)]
pub(super) struct Arguments(Vec<OsString>);

impl Arguments {
    fn words<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(OsString::from));
    }

    pub(super) fn option(&mut self, name: &str, value: String) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    pub(super) fn json(&mut self, name: &str, value: &Value) {
        self.option(name, value.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn plan(machine: &MachineConfig) -> Plan<'_> {
        Plan {
            id: "vm",
            machine,
            kernel: "a,b",
            initrd: None,
            initrd_fd: None,
            cmdline: "console=ttyS0".into(),
            drives: Vec::new(),
            bell: null().into(),
            interfaces: Vec::new(),
            balloon: None,
            entropy: Some(null()),
            vsock: Some(null()),
            qmp: null(),
            console: SerialPort {
                output: null(),
                input: null(),
            },
        }
    }

    #[test]
    fn processors() {
        for (vcpu_count, smt, expected) in [
            (1, false, "cpus=1,maxcpus=2,sockets=2,threads=1"),
            (1, true, "cpus=1,maxcpus=2,sockets=2,threads=1"),
            (3, false, "cpus=3,sockets=1,threads=1"),
            (4, true, "cpus=4,sockets=1,threads=2"),
        ] {
            let machine = MachineConfig {
                vcpu_count,
                smt,
                ..MachineConfig::default()
            };
            assert_eq!(plan(&machine).processors(), expected);
        }
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
        let balloon = BalloonConfig {
            deflate_on_oom: true,
            ..BalloonConfig::default()
        };
        let plan = Plan {
            interfaces: vec![PlannedInterface {
                mac: MacAddress([2, 0, 0, 0, 0, 1]),
                link: Link::Socket(null()),
            }],
            balloon: Some(&balloon),
            ..plan(&machine)
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
        assert!(
            args.iter()
                .any(|arg| arg.contains("\"mac\":\"02:00:00:00:00:01\""))
        );
        assert!(
            args.iter()
                .any(|arg| arg.contains("\"deflate-on-oom\":true"))
        );
        assert!(args.iter().any(|arg| arg.contains("\"type\":\"dgram\"")));
        assert_eq!(plan.inherited().len(), 7);
    }
}
