//! Exposing files to a VMM without a jail.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::backend::{BackendError, Exposer};

/// Symbolic links in the VMM's working directory. Nothing is hidden from the VMM, and who may write
/// is between the file's mode and the VMM's user.
#[derive(Debug)]
pub struct Links {
    dir: PathBuf,
}

impl Links {
    /// Links in `dir`, the working directory of the VMM.
    pub fn new(dir: impl Into<PathBuf>) -> Links {
        Links { dir: dir.into() }
    }
}

#[async_trait]
impl Exposer for Links {
    async fn expose(
        &self,
        name: &str,
        host_path: &Path,
        _read_only: bool,
    ) -> Result<String, BackendError> {
        let link = self.dir.join(name);
        match symlink(host_path, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove(&link)?;
                symlink(host_path, &link)?;
            }
            other => other?,
        }
        Ok(name.to_owned())
    }

    async fn withdraw(&self, name: &str) -> Result<(), BackendError> {
        Ok(remove(&self.dir.join(name))?)
    }
}

fn remove(link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ways_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::new(dir.path());
        let link = dir.path().join("ctrstub0.attached");
        for target in ["/a", "/a", "/b"] {
            let seen = links
                .expose("ctrstub0.attached", Path::new(target), false)
                .await
                .unwrap();
            assert_eq!(seen, "ctrstub0.attached");
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
        for _ in 0..2 {
            links.withdraw("ctrstub0.attached").await.unwrap();
            assert!(link.symlink_metadata().is_err());
        }
    }

    #[tokio::test]
    async fn what_is_no_link_of_ours_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("x")).unwrap();
        let links = Links::new(dir.path());
        assert!(links.expose("x", Path::new("/a"), true).await.is_err());
        assert!(links.withdraw("x").await.is_err());
    }
}
