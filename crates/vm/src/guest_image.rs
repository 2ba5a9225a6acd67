//! What the builder of a root image wrote beside it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use fc_proto::image::{MANIFEST, Manifest};

/// Largest manifest that is read, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// The description of the root image at `root`. `None` for an image without one, or with one that is of another image:
/// whether its agent is one of ours is then not known before it answers.
#[must_use]
pub fn describe(root: &Path) -> Option<Manifest> {
    let mut text = Vec::new();
    File::open(root.with_file_name(MANIFEST))
        .ok()?
        .take(MAX_MANIFEST)
        .read_to_end(&mut text)
        .ok()?;
    let manifest: Manifest = serde_json::from_slice(&text).ok()?;
    let described = manifest.files.get(root.file_name()?.to_str()?)?;
    let same = std::fs::metadata(root).ok()?.len() == described.size;
    (manifest.format == Manifest::FORMAT && same).then_some(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn least_memory(root: &Path) -> Option<u32> {
        describe(root).map(|manifest| manifest.min_memory_mib)
    }

    #[test]
    fn only_the_images_own_description_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("default-rootfs.img");
        std::fs::write(&root, "12345").unwrap();
        assert_eq!(least_memory(&root), None);
        let write = |size: u64, format: u32| {
            let manifest = json!({
                "format": format, "builder": "1", "protocol": 1, "kernel_release": "6.1",
                "min_memory_mib": 88, "request": {}, "inputs": {},
                "files": {"default-rootfs.img": {"size": size, "sha256": "00"}},
            });
            std::fs::write(dir.path().join(MANIFEST), manifest.to_string()).unwrap();
        };
        write(5, Manifest::FORMAT);
        assert_eq!(least_memory(&root), Some(88));
        assert_eq!(least_memory(&dir.path().join("other.img")), None);
        write(6, Manifest::FORMAT);
        assert_eq!(least_memory(&root), None);
        write(5, Manifest::FORMAT + 1);
        assert_eq!(least_memory(&root), None);
    }
}
