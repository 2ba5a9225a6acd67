//! The guest: busybox, the suite's own program, and the drivers that the kernel needs.

use std::path::Path;

use crate::archive::Archive;

/// Where busybox-static is.
pub const BUSYBOX: &str = "/bin/busybox";

/// Runs shell commands that arrive on the console once the drivers are loaded. Kernel messages are kept off the
/// console from then on, so that they do not end up within an answer. It is ready when its echo listens, or cannot.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
if [ -e /modules/order ]; then while read -r module; do insmod $module; done < /modules/order; fi
dmesg -n 1
stty -echo
mkfifo /listening; exec 3<>/listening
while :; do conformance-guest echo 52 >&3; done &
read -r line <&3
echo READY
while read -r line; do eval "$line"; done
"#;

/// The suite's program inside the guest.
pub const PROGRAM: &str = "conformance-guest";

/// Makes the guest's initrd.
///
/// `base` is an initrd to put it on top of: one with the kernel's modules, listed in load order in
/// `/modules/order`. The kernel unpacks both, and of two files with the same name the later one stays. Empty for a
/// kernel with every driver built in. `program` is the path of `conformance-guest`.
///
/// # Panics
/// A file cannot be read.
#[must_use]
pub fn make(base: &[u8], program: &Path) -> Vec<u8> {
    let read = |path: &Path| {
        std::fs::read(path)
            .unwrap_or_else(|error| panic!("Cannot read {}: {error}", path.display()))
    };
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "mnt", "proc", "sys"] {
        archive.dir(dir);
    }
    archive.char_device("dev/console", 5, 1);
    archive.program("bin/busybox", &read(Path::new(BUSYBOX)));
    archive.program(&format!("bin/{PROGRAM}"), &read(program));
    archive.program("init", INIT.as_bytes());
    let mut initrd = base.to_vec();
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(archive.finish());
    initrd
}
