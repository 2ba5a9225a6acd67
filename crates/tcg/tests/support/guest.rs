//! A guest made on the spot: Debian's kernel, and an initrd of busybox and a few of its modules.

use std::fs;
use std::path::{Path, PathBuf};

/// Runs shell commands from the console once the virtio drivers are there.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys
for m in /m/*; do insmod $m; done
stty -echo
echo READY
while read -r line; do eval "$line"; done
"#;

pub struct Guest {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl Guest {
    /// Makes a guest in `directory`; says why there can be none.
    pub fn make(directory: &Path) -> Option<Self> {
        let Some(tree) = std::env::var_os("FC_TEST_KERNEL_DIR").map(PathBuf::from) else {
            println!("SKIPPED: FC_TEST_KERNEL_DIR does not name an unpacked Debian kernel package");
            return None;
        };
        let Ok(busybox) = fs::read("/bin/busybox") else {
            println!("SKIPPED: /bin/busybox is missing: install busybox-static");
            return None;
        };
        if fc_tcg::qemu::find().is_err() {
            println!("SKIPPED: qemu-system-x86_64 is missing: install QEMU 10 or newer");
            return None;
        }
        let Some(image) = first(&tree.join("boot"), "vmlinuz-") else {
            println!("SKIPPED: no boot/vmlinuz-* in {}", tree.display());
            return None;
        };
        let mut kernel = fs::read(&image).unwrap();
        // Firecracker's kernels are not compressed, and QEMU loads those another way.
        if let Some(elf) = uncompress(&kernel) {
            kernel = elf;
        }
        let guest = Self {
            kernel: directory.join("kernel"),
            initrd: directory.join("initrd"),
        };
        fs::write(&guest.kernel, kernel).unwrap();

        let mut cpio = Cpio::default();
        for name in ["bin", "dev", "m", "proc", "sys"] {
            cpio.entry(name, 0o40_755, &[], (0, 0));
        }
        cpio.entry("dev/console", 0o20_600, &[], (5, 1));
        cpio.entry("bin/busybox", 0o100_755, &busybox, (0, 0));
        cpio.entry("init", 0o100_755, INIT.as_bytes(), (0, 0));
        for (at, module) in modules_for(&tree).iter().enumerate() {
            cpio.entry(
                &format!("m/{at:02}.ko"),
                0o100_644,
                &fs::read(module).unwrap(),
                (0, 0),
            );
        }
        let mut initrd = cpio.end();
        // No whole number of pages: the shape that QEMU needs help with.
        initrd.resize(initrd.len().next_multiple_of(4096) + 512, 0);
        fs::write(&guest.initrd, initrd).unwrap();
        Some(guest)
    }
}

/// The modules for the devices, in an order that loads.
fn modules_for(tree: &Path) -> Vec<PathBuf> {
    let release = first(&tree.join("lib/modules"), "").expect("no modules");
    [
        "drivers/virtio/virtio_ring",
        "drivers/virtio/virtio",
        "drivers/virtio/virtio_mmio",
        "drivers/block/virtio_blk",
        "drivers/virtio/virtio_balloon",
        "drivers/char/hw_random/rng-core",
        "drivers/char/hw_random/virtio-rng",
        "net/core/failover",
        "drivers/net/net_failover",
        "drivers/net/virtio_net",
    ]
    .iter()
    .map(|name| release.join("kernel").join(format!("{name}.ko")))
    .filter(|path| path.exists())
    .collect()
}

fn first(directory: &Path, prefix: &str) -> Option<PathBuf> {
    fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
}

/// The ELF kernel in a bzImage whose payload is in LZ4's legacy format, as Debian's 6.1 is.
fn uncompress(image: &[u8]) -> Option<Vec<u8>> {
    const MAGIC: &[u8] = b"\x02\x21\x4c\x18";
    const BLOCK: usize = 8 << 20;
    let mut rest = &image[image.windows(4).position(|window| window == MAGIC)? + 4..];
    let mut elf = Vec::new();
    while let Some((size, after)) = rest.split_first_chunk() {
        let size = u32::from_le_bytes(*size) as usize;
        let Some(block) = after.get(..size).filter(|block| !block.is_empty()) else {
            break;
        };
        // What follows the last block is no block.
        let Ok(plain) = lz4_flex::block::decompress(block, BLOCK) else {
            break;
        };
        elf.extend(plain);
        rest = &after[size..];
    }
    elf.starts_with(b"\x7fELF").then_some(elf)
}

/// An archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Cpio(Vec<u8>);

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        let size = content.len();
        let name_size = name.len() + 1;
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.0.len(),
            0,
            0,
            1,
            0,
            0,
            0,
            device.0,
            device.1,
            0
        );
        self.0.extend(header.as_bytes());
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.0
    }
}
