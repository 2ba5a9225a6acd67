//! A small VM with the device under test and the probe as its `/init`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fc_vhost_vsock::{VsockConfig, VsockDevice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::ports;

/// In the order they depend on each other; those built into the kernel have no file.
const MODULES: [&str; 7] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_mmio.ko",
    "drivers/block/virtio_blk.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
];

/// Size of the VM's disk in bytes.
pub const DISK_LEN: usize = 16 << 20;

/// A booted VM whose probe is ready.
pub struct Vm {
    directory: tempfile::TempDir,
    qemu: Child,
    /// `None` once taken out to look at its end.
    pub device: Option<VsockDevice>,
}

impl Vm {
    /// Boots, or says why this machine cannot.
    pub fn boot() -> Result<Vm, String> {
        let root = std::env::var_os("FC_TEST_KERNEL_DIR")
            .ok_or("FC_TEST_KERNEL_DIR names no unpacked kernel package")?;
        let root = Path::new(&root);
        let kernel = find(&root.join("boot"), "vmlinuz-")?;
        let modules = find(&root.join("lib/modules"), "")?.join("kernel");
        if !modules.join("net/vmw_vsock/vsock.ko").exists() {
            return Err(format!(
                "{} has no uncompressed vsock modules",
                modules.display()
            ));
        }
        let qemu = "qemu-system-x86_64";
        if Command::new(qemu)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            return Err(format!("{qemu} is not installed"));
        }

        let directory = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("initrd"), initrd(&modules)).expect("initrd");
        fs::write(at("disk"), vec![1; DISK_LEN]).expect("disk");
        let device = VsockDevice::start(VsockConfig {
            vhost_socket: UnixListener::bind(at("vhost")).expect("vhost socket"),
            uds_path: at("v.sock"),
            guest_cid: 3,
        })
        .expect("device");
        let ready = UnixListener::bind(host_path(directory.path(), ports::READY)).expect("ready");
        let qemu = Command::new(qemu)
            .args(["-object", "memory-backend-memfd,id=mem0,size=512M,share=on"])
            .args([
                "-M",
                "microvm,acpi=on,pit=on,pic=on,rtc=on,memory-backend=mem0",
            ])
            .args(["-cpu", "max", "-accel", "tcg,thread=multi", "-m", "512"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .arg("-chardev")
            .arg(format!("socket,id=c0,path={}", at("vhost").display()))
            .args(["-device", "vhost-user-vsock-device,chardev=c0"])
            .arg("-drive")
            .arg(format!(
                "if=none,id=d0,format=raw,file={}",
                at("disk").display()
            ))
            .args(["-device", "virtio-blk-device,drive=d0"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", at("qmp").display()))
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(at("initrd"))
            .arg("-append")
            .arg(format!(
                "console=ttyS0 loglevel=4 reboot=t panic=-1 tsc_early_khz={} tsc=reliable",
                tsc_khz()
            ))
            .stdin(Stdio::null())
            .stdout(File::create(at("console")).expect("console"))
            .spawn()
            .expect("QEMU");
        let vm = Vm {
            directory,
            qemu,
            device: Some(device),
        };
        let booted = Instant::now();
        let device = vm.device.as_ref().expect("device");
        // The device's end is QEMU's: the guest has panicked.
        wait_for_either(&ready, device, Duration::from_secs(300));
        if device.end().is_some() || ready.accept().is_err() {
            panic!("The guest is not ready");
        }
        println!("Guest ready after {:.1} s", booted.elapsed().as_secs_f64());
        Ok(vm)
    }

    /// What the guest has printed.
    pub fn console(&self) -> String {
        let console = fs::read(self.directory.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&console).into_owned()
    }

    /// Where the device listens.
    pub fn uds_path(&self) -> PathBuf {
        self.directory.path().join("v.sock")
    }

    /// Connects to a guest port as host programs do.
    pub fn connect(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(self.uds_path()).expect("connect");
        writeln!(stream, "CONNECT {port}").expect("CONNECT");
        let ok = read_line(&mut stream);
        assert!(
            ok.starts_with("OK "),
            "{ok:?}, console:\n{}",
            self.console()
        );
        stream
    }

    /// Listens for the guest.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(host_path(self.directory.path(), port)).expect("listen")
    }

    /// Has QEMU stop the guest or let it go on (`stop`, `cont`).
    pub fn qmp(&self, command: &str) {
        let mut stream = UnixStream::connect(self.directory.path().join("qmp")).expect("QMP");
        read_line(&mut stream);
        for command in ["qmp_capabilities", command] {
            writeln!(stream, "{{\"execute\":\"{command}\"}}").expect("command");
            // Events may come before the answer.
            while !read_line(&mut stream).contains("\"return\"") {}
        }
    }

    /// CPU time this process and QEMU have used.
    pub fn cpu_time(&self) -> (Duration, Duration) {
        (
            process_cpu("self"),
            process_cpu(&self.qemu.id().to_string()),
        )
    }

    /// Ends QEMU.
    pub fn kill(&mut self) {
        self.qemu.kill().expect("kill");
        self.qemu.wait().expect("wait");
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            eprintln!("Console:\n{}", self.console());
        }
    }
}

/// Reads a line bytewise, leaving what follows.
pub fn read_line(stream: &mut UnixStream) -> String {
    let mut line = String::new();
    let mut byte = [0];
    while stream.read(&mut byte).expect("line") == 1 && byte[0] != b'\n' {
        line.push(byte[0].into());
    }
    line
}

/// Whether the descriptor becomes readable in time.
pub fn readable_within(fd: &impl AsFd, bound: Duration) -> bool {
    let bound = Timespec::try_from(bound).expect("bound");
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&bound)).expect("poll") == 1
}

fn wait_for_either(one: &impl AsFd, other: &impl AsFd, bound: Duration) {
    let bound = Timespec::try_from(bound).expect("bound");
    let mut fds =
        [one.as_fd(), other.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    assert_ne!(
        poll(&mut fds, Some(&bound)).expect("poll"),
        0,
        "nothing in time"
    );
}

fn host_path(directory: &Path, port: u32) -> PathBuf {
    directory.join(format!("v.sock_{port}"))
}

fn find(directory: &Path, prefix: &str) -> Result<PathBuf, String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .ok_or_else(|| format!("{} has no {prefix}*", directory.display()))
}

fn process_cpu(pid: &str) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    // Fields 14 and 15, in ticks of 10 ms; the name before them may hold anything.
    let fields = stat.rsplit(')').next().expect("fields").split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|f| f.parse::<u64>().expect("ticks"))
        .sum();
    Duration::from_millis(ticks * 10)
}

/// The rate of the host's time-stamp counter, which an emulated CPU passes on.
fn tsc_khz() -> u64 {
    // SAFETY: every x86-64 CPU has this instruction, and Linux allows it.
    let now = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, first) = (Instant::now(), now());
    std::thread::sleep(Duration::from_millis(50));
    let (ticks, elapsed) = (now() - first, start.elapsed());
    u64::try_from(u128::from(ticks) * 1_000_000 / elapsed.as_nanos()).expect("kHz")
}

/// A cpio archive ("newc") with the probe and the modules.
fn initrd(modules: &Path) -> Vec<u8> {
    let probe = std::env::current_exe()
        .expect("path of the test")
        .parent()
        .expect("deps")
        .with_file_name("examples")
        .join("guest-vsock-probe");
    let probe = fs::read(&probe)
        .unwrap_or_else(|error| panic!("{}: {error} (cargo build --examples)", probe.display()));
    let mut archive = Vec::new();
    let mut order = String::new();
    for name in ["dev", "modules"] {
        cpio_entry(&mut archive, name, 0o40_755, &[]);
    }
    for (index, module) in MODULES.iter().enumerate() {
        if let Ok(content) = fs::read(modules.join(module)) {
            let name = format!("modules/{index}.ko");
            order += &format!("/{name}\n");
            cpio_entry(&mut archive, &name, 0o100_644, &content);
        }
    }
    cpio_entry(&mut archive, "modules/order", 0o100_644, order.as_bytes());
    cpio_entry(&mut archive, "init", 0o100_755, &probe);
    cpio_entry(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn cpio_entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |archive: &mut Vec<u8>| archive.resize(archive.len().next_multiple_of(4), 0);
    // inode, mode, uid, gid, links, mtime, size, four device numbers, name's length, checksum
    let inode = archive.len();
    let fields = [
        inode,
        mode as usize,
        0,
        0,
        1,
        0,
        content.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    pad(archive);
    archive.extend(content);
    pad(archive);
}
