//! Exposing files to a VMM without a jail.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use fc_host_file::HostFile;

use crate::backend::{BackendError, Exposer};

/// Symbolic links in the VMM's working directory, which lead to this process's descriptors
/// ([`HostFile::link`]): the VMM opens the file that was checked and locked, whatever is at its path meanwhile.
/// That asks for a VMM of this process's user, which it is without a jail, and works for one that opens a drive
/// again later. Nothing is hidden from the VMM, and who may write is between the file's mode and the VMM's user.
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
        file: &HostFile,
        _read_only: bool,
    ) -> Result<String, BackendError> {
        let link = self.dir.join(name);
        match symlink(file.link(), &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                remove(&link)?;
                symlink(file.link(), &link)?;
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
    use fc_host_file::Access;

    use super::*;

    #[tokio::test]
    async fn both_ways_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::new(dir.path());
        let link = dir.path().join("ctrstub0.attached");
        for name in ["a", "a", "b"] {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            let file = HostFile::open(&path, Access::Read).unwrap();
            // Another one in its place: not the one that was opened.
            fs::remove_file(&path).unwrap();
            fs::write(&path, "swapped").unwrap();
            let seen = links
                .expose("ctrstub0.attached", &file, false)
                .await
                .unwrap();
            assert_eq!(seen, "ctrstub0.attached");
            assert_eq!(fs::read(&link).unwrap(), name.as_bytes());
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
        let file = HostFile::create(&dir.path().join("a")).unwrap();
        assert!(links.expose("x", &file, true).await.is_err());
        assert!(links.withdraw("x").await.is_err());
    }
}
