//! The initrd: `firecracker-initrd` and the modules that lead to the root file system.

use crate::cpio::Archive;
use crate::modules::Module;

/// Makes an uncompressed initrd. `/modules/order` lists the modules' paths, one
/// per line, in the order in which `init` loads them.
///
/// Uncompressed because the kernel then only copies it, which under software
/// emulation is far cheaper than to decompress it.
pub fn build(init: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys"] {
        archive.dir(dir);
    }
    // Where the kernel opens init's stdio before anything is mounted.
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, init);
    let mut order = String::new();
    for module in modules {
        let path = format!("modules/{}.ko", module.name);
        archive.file(&path, 0o644, &module.image);
        order += &format!("/{path}\n");
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    let mut image = archive.finish();
    image.resize(image.len().next_multiple_of(PAGE), 0);
    image
}

/// QEMU loads the initrd of a vmlinux to the top of memory, aligned down to a
/// page, where the firmware's ACPI tables end within the last page. An initrd of
/// whole pages leaves that one alone; another one overwrites the tables.
const PAGE: usize = 4096;
