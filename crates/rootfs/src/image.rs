//! A read-only image, shared or one container's own.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fc_host_file::HostFile;

use crate::cache::CacheError;
use crate::erofs::{self, RootAttributes};

/// A read-only EROFS image. There is no way to write to it: attach it to
/// drives that were created read-only. Keep it, or its file, for as long as a VM uses it.
#[derive(Debug)]
pub struct Image {
    /// Of a shared image: locked shared, so that it is not removed from the cache.
    file: HostFile,
    shared: bool,
}

impl Image {
    /// An entry of the cache, which `file` holds a shared lock on.
    pub(crate) fn shared(path: &Path, file: File) -> Result<Image, CacheError> {
        Ok(Image {
            file: HostFile::shared(path, file)?,
            shared: true,
        })
    }

    /// Makes an image at `path` that is nobody else's; it is removed with the last who keeps its file.
    pub(crate) fn private<E: From<CacheError>>(
        path: &Path,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Image, E> {
        let file = HostFile::create(path).map_err(CacheError::from)?;
        build(path)?;
        file.file()
            .set_permissions(Permissions::from_mode(0o444))
            .map_err(|error| CacheError::Io("make", path.into(), error))?;
        Ok(Image {
            file,
            shared: false,
        })
    }

    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file to attach.
    pub fn file(&self) -> &HostFile {
        &self.file
    }

    /// Whether other VMs may use the same file; if not, it is removed when nobody keeps it any more.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn root_attributes(&self) -> Result<RootAttributes, CacheError> {
        erofs::root_attributes(self.file.file())
            .map_err(|error| CacheError::Io("read", self.path().into(), error))?
            .ok_or_else(|| CacheError::Invalid(self.path().into()))
    }
}
