//! The layers of a rootfs and what identifies them.

use std::io;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statfs, statx};
use sha2::{Digest, Sha256};

use crate::mounts::Device;

/// Changes whenever the same layers would give another image, for reasons other than mkfs.erofs.
const FORMAT: u32 = 1;

/// What the containerd erofs snapshotter puts beside a layer's (empty or mounted) directory.
const EROFS_MARKER: &str = ".erofslayer";
const EROFS_IMAGE: &str = "layer.erofs";

/// Filesystems that are only ever images, by their magic numbers (`linux/magic.h`): erofs, squashfs, iso9660, cramfs.
const IMAGE_FILESYSTEMS: [u64; 4] = [0xe0f5_e1e2, 0x7371_7368, 0x9660, 0x28cd_3d45];

/// One layer of a rootfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layer {
    /// A directory in overlayfs' own format: whiteouts are devices 0/0, opaque directories an xattr.
    Directory(PathBuf),
    /// An EROFS image whose content is in that format.
    Erofs(PathBuf),
    /// A block device or image file with any filesystem, one of several mounts.
    Device(Device),
}

impl Layer {
    /// The layer that a mount calls `dir`. For containerd's erofs snapshotter
    /// that is the image beside the directory, which may not be mounted.
    pub(crate) fn of(dir: PathBuf) -> Result<Layer, LayerError> {
        if let Some(snapshot) = dir.parent() {
            let image = snapshot.join(EROFS_IMAGE);
            let marked = snapshot.join(EROFS_MARKER).exists() || dir.join(EROFS_MARKER).exists();
            if marked && image.is_file() {
                return Ok(Layer::Erofs(image));
            }
        }
        Layer::directory(dir)
    }

    /// A layer that is a directory whatever lies beside it.
    pub(crate) fn directory(dir: PathBuf) -> Result<Layer, LayerError> {
        match std::fs::metadata(&dir) {
            Ok(metadata) if metadata.is_dir() => Ok(Layer::Directory(dir)),
            Ok(_) => Err(LayerError::NotADirectory(dir)),
            Err(error) => Err(LayerError::Unreadable(dir, error)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Layer::Directory(path) | Layer::Erofs(path) => path,
            Layer::Device(device) => &device.source,
        }
    }
}

/// A rootfs's layers, topmost first.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) layers: Vec<Layer>,
    /// Overlay options that change how the layers are read.
    pub(crate) options: Vec<String>,
    /// Whether nobody changes the layers any more, so that an image of them can be shared.
    pub(crate) immutable: bool,
}

impl Layers {
    /// Identifies the merged content: equal keys mean equal images. A file name of hexadecimal digits; `None`
    /// when they cannot be told from others', or may change.
    ///
    /// A snapshot's number starts again when containerd's root is wiped, and
    /// its path with it; inode and birth time together do not repeat.
    pub(crate) fn key(&self, builder: &str) -> Result<Option<String>, LayerError> {
        if !self.immutable {
            return Ok(None);
        }
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        };
        add(&FORMAT.to_string());
        add(builder);
        for option in &self.options {
            add(option);
        }
        for layer in &self.layers {
            add(match layer {
                Layer::Directory(_) => "directory",
                Layer::Erofs(_) => "erofs",
                Layer::Device(_) => "device",
            });
            let unreadable = |error| LayerError::Unreadable(layer.path().into(), error);
            if is_image_mount(layer.path()).map_err(unreadable)? {
                return Ok(None);
            }
            add(&identity(layer.path()).map_err(unreadable)?);
        }
        Ok(Some(HEXLOWER.encode(&hash.finalize())))
    }
}

/// Whether `path` is in a mounted image. Inodes and times there are what the image says, and the device's number
/// is the next image's after it: they identify nothing.
fn is_image_mount(path: &Path) -> io::Result<bool> {
    let magic = statfs(path)?.f_type & 0xffff_ffff;
    Ok(IMAGE_FILESYSTEMS.contains(&u64::try_from(magic).unwrap_or(0)))
}

/// Identifies a file or directory for as long as its filesystem lives.
pub(crate) fn identity(path: &Path) -> io::Result<String> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = statx(CWD, path, AtFlags::empty(), wanted)?;
    Ok(identity_of(&stat))
}

fn identity_of(stat: &Statx) -> String {
    let place = format!(
        "{}:{} {}",
        stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino
    );
    if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME) {
        let born = stat.stx_btime;
        return format!("{place} born {}.{}", born.tv_sec, born.tv_nsec);
    }
    let (changed, modified) = (stat.stx_ctime, stat.stx_mtime);
    format!(
        "{place} changed {}.{} modified {}.{}",
        changed.tv_sec, changed.tv_nsec, modified.tv_sec, modified.tv_nsec
    )
}

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// It cannot be looked at.
    #[error("The layer {0:?} cannot be read")]
    Unreadable(PathBuf, #[source] io::Error),
    /// It is something else.
    #[error("The layer {0:?} is no directory")]
    NotADirectory(PathBuf),
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn layers(dirs: &[&Path]) -> Layers {
        Layers {
            layers: dirs
                .iter()
                .map(|dir| Layer::Directory((*dir).into()))
                .collect(),
            options: Vec::new(),
            immutable: true,
        }
    }

    #[test]
    fn the_key_depends_on_order_builder_options_and_birth() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let key = layers(&[&a, &b]).key("x").unwrap().unwrap();
        assert_eq!(key, layers(&[&a, &b]).key("x").unwrap().unwrap());
        assert_eq!(key.len(), 64);
        assert_ne!(key, layers(&[&b, &a]).key("x").unwrap().unwrap());
        assert_ne!(key, layers(&[&a]).key("x").unwrap().unwrap());
        assert_ne!(key, layers(&[&a, &b]).key("y").unwrap().unwrap());
        let mut with_option = layers(&[&a, &b]);
        with_option.options.push("userxattr".into());
        assert_ne!(key, with_option.key("x").unwrap().unwrap());

        let mut changing = layers(&[&a]);
        changing.immutable = false;
        assert_eq!(changing.key("x").unwrap(), None);

        // The name comes back, the directory does not.
        fs::rename(&a, dir.path().join("old")).unwrap();
        fs::create_dir(&a).unwrap();
        assert_ne!(key, layers(&[&a, &b]).key("x").unwrap().unwrap());
        assert_eq!(
            key,
            layers(&[&dir.path().join("old"), &b])
                .key("x")
                .unwrap()
                .unwrap()
        );
    }

    #[test]
    fn without_a_birth_time_the_other_times_count() {
        let mut stat = statx(CWD, "/", AtFlags::empty(), StatxFlags::BASIC_STATS).unwrap();
        stat.stx_mask &= !StatxFlags::BTIME.bits();
        let before = identity_of(&stat);
        stat.stx_ctime.tv_nsec ^= 1;
        assert_ne!(before, identity_of(&stat));
    }

    #[test]
    fn an_erofs_snapshot_is_its_image() {
        let dir = tempfile::tempdir().unwrap();
        let fs_dir = dir.path().join("fs");
        fs::create_dir(&fs_dir).unwrap();
        fs::write(dir.path().join("layer.erofs"), "").unwrap();
        assert_eq!(
            Layer::of(fs_dir.clone()).unwrap(),
            Layer::Directory(fs_dir.clone())
        );
        fs::write(dir.path().join(".erofslayer"), "").unwrap();
        assert_eq!(
            Layer::of(fs_dir).unwrap(),
            Layer::Erofs(dir.path().join("layer.erofs"))
        );
    }

    #[test]
    fn a_missing_layer_is_named() {
        let error = Layer::of("/nonexistent/fs".into()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/fs"));
    }
}
