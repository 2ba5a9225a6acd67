//! The host's CPU cache topology, which Firecracker on ARM reads from sysfs to describe it to the guest.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Where sysfs tells it, without the leading `/`.
const CACHE: &str = "sys/devices/system/cpu/cpu0/cache";
/// What Firecracker reads of each cache.
const FILES: [&str; 6] = [
    "level",
    "type",
    "size",
    "number_of_sets",
    "shared_cpu_map",
    "coherency_line_size",
];

/// Copies the topology of the host, whose root directory is `host`, below `root`. What the host does not tell is
/// left out.
pub(crate) fn copy(host: &Path, root: &Path) -> io::Result<()> {
    let caches = match fs::read_dir(host.join(CACHE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for cache in caches {
        let cache = cache?;
        if !cache.file_name().to_string_lossy().starts_with("index") {
            continue;
        }
        let to = root.join(CACHE).join(cache.file_name());
        fs::create_dir_all(&to)?;
        for name in FILES {
            match fs::read(cache.path().join(name)) {
                Ok(content) => write(&to.join(name), &content)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        for directory in to.ancestors().take_while(|directory| *directory != root) {
            fs::set_permissions(directory, Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// A file that everybody may read and nobody write to, whatever this process' umask is.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, Permissions::from_mode(0o444))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_tells_is_copied() {
        let (host, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        copy(host.path(), root.path()).unwrap();
        let index = host.path().join(CACHE).join("index0");
        fs::create_dir_all(&index).unwrap();
        fs::create_dir(host.path().join(CACHE).join("uevent")).unwrap();
        fs::write(index.join("level"), "1\n").unwrap();
        fs::write(index.join("ways_of_associativity"), "8\n").unwrap();
        copy(host.path(), root.path()).unwrap();
        let copied = root.path().join(CACHE);
        assert_eq!(fs::read(copied.join("index0/level")).unwrap(), b"1\n");
        for (path, mode) in [("", 0o755), ("index0", 0o755), ("index0/level", 0o444)] {
            let permissions = copied.join(path).metadata().unwrap().permissions();
            assert_eq!(permissions.mode() & 0o7777, mode, "{path}");
        }
        assert_eq!(fs::read_dir(copied.join("index0")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(copied).unwrap().count(), 1);
    }
}
