//! The host's CPU cache topology, which Firecracker on ARM reads from sysfs to describe it to the guest.

use std::fs;
use std::io;
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
                Ok(content) => fs::write(to.join(name), content)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
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
        assert_eq!(fs::read_dir(copied.join("index0")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(copied).unwrap().count(), 1);
    }
}
