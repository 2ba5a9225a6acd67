//! Shows files to a jailed VMM while it runs.

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use fc_drives::{BackendError, Exposer};
use fc_host_file::HostFile;

use crate::access::Access;
use crate::error::JailError;
use crate::file_mount::{FileMounter, detach};
use crate::layout;
use crate::loan::Lender;
use crate::spec;

/// Mounts and nodes in the VM's directory of drives, which the container follows. They are made from the
/// descriptors of files that were checked and locked, never from their paths.
pub(crate) struct JailExposer {
    drives: PathBuf,
    mounter: Arc<FileMounter>,
    lender: Arc<Lender>,
    exposed: Mutex<HashMap<String, Exposed>>,
}

/// What is behind a name.
struct Exposed {
    /// To be given back to its owner.
    file: HostFile,
    access: Access,
}

impl JailExposer {
    pub(crate) fn new(dir: &Path, mounter: Arc<FileMounter>, lender: Arc<Lender>) -> Self {
        Self {
            drives: dir.join(layout::DRIVES),
            mounter,
            lender,
            exposed: Mutex::default(),
        }
    }

    fn target(&self, name: &str) -> Result<PathBuf, JailError> {
        check_name(name)?;
        Ok(self.drives.join(name))
    }

    /// How the VMM may use what is behind `name`.
    fn access_to(&self, name: &str) -> Option<Access> {
        let exposed = self.exposed.lock().unwrap_or_else(PoisonError::into_inner);
        exposed.get(name).map(|shown| shown.access)
    }

    fn take_away(&self, name: &str) -> Result<(), BackendError> {
        detach(&self.target(name)?)?;
        let mut exposed = self.exposed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(shown) = exposed.get(name) else {
            return Ok(());
        };
        self.lender.take_back(shown.file.file())?;
        exposed.remove(name);
        Ok(())
    }

    /// Lets go of the files, which nobody uses any more, because the jail has been undone.
    pub(crate) fn closed(&self) {
        let mut exposed = self.exposed.lock().unwrap_or_else(PoisonError::into_inner);
        exposed.clear();
    }
}

#[async_trait]
impl Exposer for JailExposer {
    async fn expose(
        &self,
        name: &str,
        file: &HostFile,
        read_only: bool,
    ) -> Result<String, BackendError> {
        let target = self.target(name)?;
        let visible = format!("{}/{name}", spec::DRIVES.trim_start_matches('/'));
        let access = Access::of_drive(read_only);
        if self.access_to(name) == Some(access) && is_shown(file, &target) {
            return Ok(visible);
        }
        self.take_away(name)?;
        let mut exposed = self.exposed.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = Exposed {
            file: file.clone(),
            access,
        };
        exposed.insert(name.to_owned(), shown);
        drop(exposed);
        self.mounter
            .attach_open(file.file(), file.path(), &target, access)?;
        Ok(visible)
    }

    async fn withdraw(&self, name: &str) -> Result<(), BackendError> {
        self.take_away(name)
    }
}

/// Whether `target` is the file or device already.
fn is_shown(file: &HostFile, target: &Path) -> bool {
    let (Ok(file), Ok(shown)) = (file.file().metadata(), target.symlink_metadata()) else {
        return false;
    };
    if file.file_type().is_block_device() {
        shown.file_type().is_block_device() && file.rdev() == shown.rdev()
    } else {
        (file.dev(), file.ino()) == (shown.dev(), shown.ino())
    }
}

/// Refuses what is more than the name of a file.
pub(crate) fn check_name(name: &str) -> Result<(), JailError> {
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        Err(JailError::Name(name.to_owned()))
    } else {
        Ok(())
    }
}
