//! What is mounted where: `/proc/self/mountinfo`, see proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The mount table cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read the list of mounts")]
pub struct InfoError(#[source] io::Error);

/// A block device as mount tables name it.
#[derive(Debug, Clone)]
pub struct Disk {
    number: String,
    path: String,
}

impl Disk {
    /// The device `major:minor`, whose node is at `path` and was mounted by that name.
    #[must_use]
    pub fn new(major: u64, minor: u64, path: String) -> Self {
        Self {
            number: format!("{major}:{minor}"),
            path,
        }
    }

    fn holds(&self, entry: &Entry) -> bool {
        // Btrfs may be on several devices: its number is one of its own, and the device is shown as the source.
        entry.device == self.number.as_bytes()
            || entry.is_btrfs() && entry.source == self.path.as_bytes()
    }
}

/// Where a block device is mounted, in the order of mounting.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn mount_points(disk: &Disk) -> Result<Vec<PathBuf>, InfoError> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(InfoError)?;
    Ok(parse(&table, disk))
}

/// Where anything that holds data of disks is mounted, except `/`, in the order of mounting.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn disk_mounts() -> Result<Vec<PathBuf>, InfoError> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(InfoError)?;
    Ok(entries(&table)
        .filter(|entry| entry.target != b"/" && entry.is_on_disk())
        .map(|entry| unescape(entry.target))
        .collect())
}

/// What is mounted directly on the root file system, the last on each place.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn top_mounts() -> Result<Vec<PathBuf>, InfoError> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(InfoError)?;
    Ok(parse_top(&table))
}

/// Whether a process's mount table lists the block device.
#[must_use]
pub fn is_listed(table: &[u8], disk: &Disk) -> bool {
    entries(table).any(|entry| disk.holds(&entry))
}

fn parse_top(table: &[u8]) -> Vec<PathBuf> {
    let root = entries(table).filter(|entry| entry.target == b"/").last();
    let Some(root) = root.map(|entry| entry.id) else {
        return Vec::new();
    };
    entries(table)
        .filter(|entry| entry.parent == root && entry.target != b"/")
        .map(|entry| unescape(entry.target))
        .collect()
}

fn parse(table: &[u8], disk: &Disk) -> Vec<PathBuf> {
    entries(table)
        .filter(|entry| disk.holds(entry))
        .map(|entry| unescape(entry.target))
        .collect()
}

struct Entry<'a> {
    id: &'a [u8],
    /// Id of the mount that it is mounted on.
    parent: &'a [u8],
    device: &'a [u8],
    target: &'a [u8],
    fstype: &'a [u8],
    source: &'a [u8],
}

impl Entry<'_> {
    /// Block devices have a major number; an overlay has none but keeps its layers in use.
    fn is_on_disk(&self) -> bool {
        !self.device.starts_with(b"0:") || self.fstype == b"overlay" || self.is_btrfs()
    }

    fn is_btrfs(&self) -> bool {
        self.fstype == b"btrfs"
    }
}

fn entries(table: &[u8]) -> impl Iterator<Item = Entry<'_>> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = fields.next()?;
        let parent = fields.next()?;
        let device = fields.next()?;
        let target = fields.nth(1)?;
        // Optional fields end with a dash.
        let mut fields = fields.skip_while(|field| *field != b"-");
        let fstype = fields.nth(1)?;
        let source = fields.next()?;
        Some(Entry {
            id,
            parent,
            device,
            target,
            fstype,
            source,
        })
    })
}

/// Blanks, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match tail {
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] if *first == b'\\' => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_points_of_one_device() {
        let table = b"21 1 254:0 / / ro - erofs /dev/vda ro\n\
            30 21 254:16 / /a\\040b rw - ext4 /dev/vdb rw\n\
            31 21 254:1 / /other rw - ext4 /dev/vdc rw\n\
            32 21 254:16 /sub /again rw - ext4 /dev/vdb rw\n\
            33 21 0:44 / /many rw - btrfs /dev/vdd rw,subvolid=5\n\
            34 21 0:45 / /tmp rw - tmpfs /dev/vdd rw\n";
        let found = |minor, path: &str| parse(table, &Disk::new(254, minor, path.to_owned()));
        assert_eq!(
            found(16, "/dev/vdb"),
            [PathBuf::from("/a b"), PathBuf::from("/again")]
        );
        assert_eq!(found(48, "/dev/vdd"), [PathBuf::from("/many")]);
    }

    #[test]
    fn only_what_is_on_the_root_itself_is_at_the_top() {
        let table = b"1 1 0:2 / / rw - rootfs rootfs rw\n\
            21 1 254:0 / / ro - erofs /dev/vda ro\n\
            22 21 0:5 / /dev rw - devtmpfs dev rw\n\
            23 22 0:6 / /dev/pts rw - devpts devpts rw\n\
            24 21 0:7 / /a\\040b rw - tmpfs tmpfs rw\n";
        assert_eq!(
            parse_top(table),
            [PathBuf::from("/dev"), PathBuf::from("/a b")]
        );
        let listed = |major| is_listed(table, &Disk::new(major, 0, "/dev/vda".to_owned()));
        assert!(listed(254) && !listed(25));
    }

    #[test]
    fn disks_and_overlays_hold_data() {
        let table = b"21 1 254:0 / / ro - erofs /dev/vda ro\n\
            22 21 0:5 / /dev rw shared:1 - devtmpfs dev rw\n\
            23 21 0:40 / /c/rootfs rw master:1 shared:2 - overlay overlay rw\n\
            24 21 0:41 / /c/other rw - btrfs /dev/vdb rw\n";
        let disks: Vec<_> = entries(table).map(|e| e.is_on_disk()).collect();
        assert_eq!(disks, [true, false, true, true]);
    }
}
