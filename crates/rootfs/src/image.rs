//! A read-only image, shared or one container's own.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::cache::CacheError;
use crate::erofs::{self, RootAttributes};

/// A read-only EROFS image. There is no way to write to it: attach it to
/// drives that were created read-only. Keep it for as long as a VM uses it.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    /// Of a shared image: locked shared, so that it is not removed from the cache.
    file: File,
    shared: bool,
}

impl Image {
    /// An entry of the cache, which `file` holds a shared lock on.
    pub(crate) fn shared(path: PathBuf, file: File) -> Image {
        Image {
            path,
            file,
            shared: true,
        }
    }

    /// Makes an image at `path` that is nobody else's; it is removed with this value.
    pub(crate) fn private<E: From<CacheError>>(
        path: &Path,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Image, E> {
        let failed = |error| CacheError::Io("make", path.into(), error);
        let created = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(failed)?;
        let image = Image {
            path: path.into(),
            file: created,
            shared: false,
        };
        build(path)?;
        image
            .file
            .set_permissions(Permissions::from_mode(0o444))
            .map_err(failed)?;
        Ok(image)
    }

    /// The file on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether other VMs may use the same file; if not, it is removed when this value is dropped.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn root_attributes(&self) -> Result<RootAttributes, CacheError> {
        erofs::root_attributes(&self.file)
            .map_err(|error| CacheError::Io("read", self.path.clone(), error))?
            .ok_or_else(|| CacheError::Invalid(self.path.clone()))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.shared {
            return;
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(image = %self.path.display(), %error, "a container's image stays");
            }
            _ => {}
        }
    }
}
