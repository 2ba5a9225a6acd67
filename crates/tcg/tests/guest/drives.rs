//! Drives of a running guest.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::Vmm;

pub fn are_swapped(vmm: &mut Vmm, directory: &Path) {
    vmm.patch_drive("ro", "stub.attached");
    vmm.wait_line("[vdb] new size: 4096 ");
    vmm.patch_drive("rw", "disk");
    vmm.wait_line("[vdc] new size: 2048 ");
    assert_eq!(
        vmm.shell("head -c 4 /dev/vdb; head -c 4 /dev/vdc; tail -c 4 /dev/vdc"),
        "IIIIDDDDDDDD"
    );
    assert_eq!(
        vmm.shell("echo x > /dev/vdb 2>/dev/null || echo refused"),
        "refused"
    );
    assert_eq!(
        vmm.shell("printf hello > /dev/vdc && sync && echo written"),
        "written"
    );

    let mut took: Vec<Duration> = Vec::new();
    for round in 0..10 {
        for (id, files) in [("ro", ["stub", "image"]), ("rw", ["stub2", "disk"])] {
            let start = Instant::now();
            vmm.patch_drive(id, files[round % 2]);
            took.push(start.elapsed());
        }
    }
    took.sort();
    println!(
        "PATCH /drives: median {:?}, longest {:?}",
        took[10], took[19]
    );
    // The guest's kernel gets round to it a moment later.
    let sizes = "cat /sys/block/vdb/size /sys/block/vdc/size | tr '\\n' ' '";
    let noticed = vmm.shell(&format!(
        "n=0; until [ \"$({sizes})\" = '4096 2048 ' ] || [ $n = 600 ]; do n=$((n + 1)); sleep 0.1; done; {sizes}"
    ));
    assert_eq!(noticed, "4096 2048");
    assert_eq!(vmm.shell("head -c 5 /dev/vdc"), "hello");

    let disk = fs::read(directory.join("disk")).unwrap();
    assert_eq!(disk.len(), (1 << 20) + 100);
    assert!(disk.starts_with(b"helloDDD") && disk.ends_with(&[b'D'; 100]));
    assert_eq!(fs::metadata(directory.join("stub")).unwrap().len(), 512);
    assert_eq!(fs::metadata(directory.join("stub2")).unwrap().len(), 512);
}

pub fn a_failed_swap_changes_nothing(vmm: &mut Vmm, directory: &Path) {
    let fault = vmm.fault(
        "PATCH",
        "/drives/rw",
        &json!({ "drive_id": "rw", "path_on_host": "missing" }),
    );
    assert_eq!(
        fault,
        "Drive config error: Unable to patch the block device: Block: Virtio backend error: Error manipulating the \
         backing file: No such file or directory (os error 2) missing Please verify the request arguments."
    );
    fs::create_dir(directory.join("dir")).unwrap();
    vmm.fault(
        "PATCH",
        "/drives/ro",
        &json!({ "drive_id": "ro", "path_on_host": "dir" }),
    );
    let fault = vmm.fault(
        "PATCH",
        "/drives/no",
        &json!({ "drive_id": "no", "path_on_host": "disk" }),
    );
    assert!(fault.contains("Device not found"), "{fault}");
    assert_eq!(
        vmm.shell("cat /sys/block/vdb/size /sys/block/vdc/size"),
        "4096 2048"
    );
    assert_eq!(
        vmm.shell("head -c 4 /dev/vdb; head -c 5 /dev/vdc"),
        "IIIIhello"
    );
    assert_eq!(
        vmm.request("GET", "/vm/config", "").1["drives"][2]["path_on_host"],
        "disk"
    );
}

/// Swaps while the guest reads and writes, and while a file system is mounted. Nobody can say what the guest
/// reads then; but it and the host's files must survive.
pub fn are_swapped_under_load(vmm: &mut Vmm, directory: &Path) {
    vmm.shell("while cat /dev/vdb >/dev/null; do :; done >/dev/null 2>&1 & echo $! > /reader");
    vmm.shell(
        "while dd if=/dev/zero of=/dev/vdc bs=64k count=8 conv=fsync; do :; done >/dev/null 2>&1 & echo $! > /writer",
    );
    for _ in 0..10 {
        for (id, file) in [
            ("ro", "stub"),
            ("ro", "image"),
            ("rw", "stub2"),
            ("rw", "disk"),
        ] {
            vmm.patch_drive(id, file);
        }
    }
    // A write beyond the end of the small file ends the writer; both are ended for certain.
    vmm.shell("kill $(cat /reader) $(cat /writer) 2>/dev/null; sleep 1; sync; echo");
    assert_eq!(fs::metadata(directory.join("stub2")).unwrap().len(), 512);
    let disk = fs::metadata(directory.join("disk")).unwrap();
    assert_eq!(disk.len(), (1 << 20) + 100);
    assert!(fs::read(directory.join("image")).unwrap() == [b'I'; 2 << 20]);

    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "ext4", "8M"])
        .current_dir(directory)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("SKIPPED: no mkfs.ext4, so no drive is swapped while mounted");
        return;
    }
    vmm.patch_drive("rw", "ext4");
    vmm.wait_line("[vdc] new size: 16384 ");
    let mounted = vmm.shell("mkdir -p /mnt; mount -t ext4 /dev/vdc /mnt && echo hi > /mnt/file && sync && cat /mnt/file");
    assert_eq!(mounted, "hi");
    vmm.patch_drive("rw", "stub2");
    vmm.wait_line("[vdc] new size: 1 ");
    vmm.shell("umount /mnt 2>/dev/null; echo");
    vmm.patch_drive("rw", "ext4");
    vmm.wait_line("[vdc] new size: 16384 ");
    let again =
        vmm.shell("mount -t ext4 -o ro /dev/vdc /mnt && cat /mnt/file; umount /mnt 2>/dev/null");
    assert_eq!(again, "hi");
    assert_eq!(fs::metadata(directory.join("stub2")).unwrap().len(), 512);
    vmm.patch_drive("rw", "disk");
}

/// Limits can be set, show in the configuration, hold, survive a swap, and end.
pub fn have_limits(vmm: &mut Vmm) {
    let read = "echo 3 > /proc/sys/vm/drop_caches; cat /dev/vdb | wc -c";
    let timed = |vmm: &mut Vmm| {
        let start = Instant::now();
        assert_eq!(vmm.shell(read), "2097152");
        start.elapsed()
    };
    let free = timed(vmm);
    let limit = json!({ "bandwidth": { "size": 1 << 20, "refill_time": 1000 } });
    let patch = |limiter| json!({ "drive_id": "ro", "rate_limiter": limiter });
    vmm.ok("PATCH", "/drives/ro", &patch(limit.clone()));
    vmm.patch_drive("ro", "image");
    let shown = &vmm.request("GET", "/vm/config", "").1["drives"][1];
    assert_eq!(
        shown["rate_limiter"]["bandwidth"]["size"],
        1 << 20,
        "{shown}"
    );
    // A bucket of 1 MiB, and another in a second.
    let limited = timed(vmm);
    println!("reading 2 MiB took {free:?}, with a limit of 1 MiB/s {limited:?}");
    assert!(limited > Duration::from_millis(800), "{limited:?}");
    let none = json!({ "bandwidth": { "size": 0, "refill_time": 0 } });
    vmm.ok("PATCH", "/drives/ro", &patch(none));
    let shown = &vmm.request("GET", "/vm/config", "").1["drives"][1];
    assert_eq!(shown["rate_limiter"], json!(null));
    timed(vmm);
}
