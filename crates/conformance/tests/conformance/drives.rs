//! Drives of a running guest: what it sees of them, and `PATCH /drives`.

use std::fs;
use std::os::unix::fs::symlink;

use fc_conformance::subject::GuestFiles;
use fc_conformance::vmm::Vmm;
use serde_json::{Value, json};

use crate::running::Guest;
use crate::{OnGuest, file};

pub const CASES: &[(&str, OnGuest)] = &[
    ("drives::order_size_and_access", order_size_and_access),
    (
        "drives::patch_of_a_read_only_drive_is_noticed",
        patch_read_only,
    ),
    (
        "drives::patch_of_a_writable_drive_is_noticed",
        patch_writable,
    ),
    (
        "drives::patch_to_a_missing_file_changes_nothing",
        patch_missing,
    ),
    ("drives::patch_that_is_none_is_refused", patch_of_nothing),
    ("drives::files_on_the_host_keep_their_size", files_stay),
];

/// A size that is no whole number of sectors: the guest must not see the rest, and it must stay.
const DISK: usize = (1 << 20) + 100;

/// Adds the root drive and two of the kind that give way to others later.
pub fn configure(vmm: &Vmm, files: &GuestFiles) {
    let directory = vmm.directory();
    file(directory, "stub", 512, b'r');
    file(directory, "stub2", 512, b'w');
    file(directory, "image", 2 << 20, b'I');
    file(directory, "disk", DISK, b'D');
    symlink("image", directory.join("stub.attached")).unwrap();
    let root = match &files.rootfs {
        Some(rootfs) => rootfs.clone(),
        None => file(directory, "root", 4096, b'0'),
    };
    let ro = json!({ "drive_id": "ro", "path_on_host": "stub", "is_root_device": false, "is_read_only": true });
    // Only the root device's partition is ever named.
    let rw = json!({
        "drive_id": "rw", "path_on_host": "stub2", "is_root_device": false, "is_read_only": false,
        "partuuid": "0eaa91a0-01",
    });
    let root = json!({ "drive_id": "root", "path_on_host": root, "is_root_device": true, "is_read_only": true });
    vmm.accept("PUT", "/drives/ro", &ro);
    vmm.accept("PUT", "/drives/rw", &rw);
    vmm.accept("PUT", "/drives/root", &root);
}

/// Gives a drive another file.
pub fn patch(guest: &Guest, id: &str, path: &str) {
    let body = json!({ "drive_id": id, "path_on_host": path });
    guest.vmm.accept("PATCH", &format!("/drives/{id}"), &body);
}

/// The file that the configuration names; the drives of a running guest are told in any order.
fn path_of(guest: &Guest, id: &str) -> Value {
    let config = guest.vmm.get("/vm/config");
    let drives = config["drives"].as_array().unwrap();
    let drive = drives.iter().find(|drive| drive["drive_id"] == id);
    drive.unwrap_or_else(|| panic!("no {id} in {config}"))["path_on_host"].clone()
}

/// Puts the image behind the read-only drive, whatever case ran before, if any.
pub fn attach_image(guest: &mut Guest) {
    patch(guest, "ro", "image");
    wait_for_sectors(guest, "vdb", 4096);
}

/// Puts the disk behind the writable drive.
fn attach_disk(guest: &mut Guest) {
    patch(guest, "rw", "disk");
    wait_for_sectors(guest, "vdc", 2048);
}

/// Has the guest write to the disk.
fn write_hello(guest: &mut Guest) {
    attach_disk(guest);
    assert_eq!(
        guest.shell("printf hello > /dev/vdc && sync && echo written"),
        "written"
    );
}

/// Waits until the guest has noticed a disk's new size.
pub fn wait_for_sectors(guest: &mut Guest, disk: &str, sectors: u64) {
    guest.wait_for(&format!("cat /sys/block/{disk}/size"), &sectors.to_string());
}

/// The root drive is the first; a stub's content is there.
fn order_size_and_access(guest: &mut Guest) {
    assert_eq!(guest.shell("cd /sys/block; echo vd?"), "vda vdb vdc");
    assert_eq!(guest.shell("cat /sys/block/vd?/ro"), "1 1 0");
    assert_eq!(guest.shell("cat /sys/block/vd[bc]/size"), "1 1");
    assert_eq!(
        guest.shell("head -c 3 /dev/vdb; head -c 3 /dev/vdc"),
        "rrrwww"
    );
}

fn patch_read_only(guest: &mut Guest) {
    // Through a link, as the runtime does.
    patch(guest, "ro", "stub.attached");
    wait_for_sectors(guest, "vdb", 4096);
    assert_eq!(
        guest.shell("head -c 4 /dev/vdb; tail -c 4 /dev/vdb"),
        "IIIIIIII"
    );
    assert_eq!(
        guest.shell("echo x 2>/dev/null > /dev/vdb || echo refused"),
        "refused"
    );
    assert_eq!(path_of(guest, "ro"), "stub.attached");
    patch(guest, "ro", "stub");
    wait_for_sectors(guest, "vdb", 1);
    attach_image(guest);
}

fn patch_writable(guest: &mut Guest) {
    attach_disk(guest);
    assert_eq!(
        guest.shell("head -c 4 /dev/vdc; tail -c 4 /dev/vdc"),
        "DDDDDDDD"
    );
    write_hello(guest);
    for (path, sectors) in [("stub2", 1), ("disk", 2048)] {
        patch(guest, "rw", path);
        wait_for_sectors(guest, "vdc", sectors);
    }
    assert_eq!(guest.shell("head -c 8 /dev/vdc"), "helloDDD");
}

fn patch_missing(guest: &mut Guest) {
    attach_image(guest);
    write_hello(guest);
    let update = "Drive config error: Unable to patch the block device: ";
    for id in ["ro", "rw"] {
        let body = json!({ "drive_id": id, "path_on_host": "missing" });
        assert_eq!(
            guest.vmm.refuse("PATCH", &format!("/drives/{id}"), &body),
            format!(
                "{update}Block: Virtio backend error: Error manipulating the backing file: \
                 No such file or directory (os error 2) missing Please verify the request arguments."
            )
        );
    }
    assert_eq!(guest.shell("cat /sys/block/vd[bc]/size"), "4096 2048");
    assert_eq!(
        guest.shell("head -c 4 /dev/vdb; head -c 5 /dev/vdc"),
        "IIIIhello"
    );
    assert_eq!(path_of(guest, "rw"), "disk");
}

fn patch_of_nothing(guest: &mut Guest) {
    let unknown = json!({ "drive_id": "no", "path_on_host": "disk" });
    let fault = guest.vmm.refuse("PATCH", "/drives/no", &unknown);
    assert!(
        fault.starts_with("Drive config error: Unable to patch the block device: "),
        "{fault}"
    );
    // With neither a path nor limits it would be for a drive of another kind.
    let fault = guest
        .vmm
        .refuse("PATCH", "/drives/rw", &json!({ "drive_id": "rw" }));
    assert!(
        fault.contains("Running method expected different backend."),
        "{fault}"
    );
}

fn files_stay(guest: &mut Guest) {
    write_hello(guest);
    let read = |name: &str| fs::read(guest.directory.path().join(name)).unwrap();
    let disk = read("disk");
    assert_eq!(disk.len(), DISK);
    assert!(disk.starts_with(b"helloDDD") && disk.ends_with(&[b'D'; 100]));
    assert_eq!(read("stub"), [b'r'; 512]);
    assert_eq!(read("stub2"), [b'w'; 512]);
    assert!(read("image") == vec![b'I'; 2 << 20]);
}
