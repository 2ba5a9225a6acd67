//! The file to show for a drive, whose content may still be on its way.

use std::io;

use fc_host_file::HostFile;
use tokio::task::JoinHandle;

use crate::error::JailError;

/// What the VMM gets for a root drive or a drive mount: the file itself, or a private copy that is being made while
/// the VMM starts. Dropped, a copy is still finished, or fails, without anybody's knowledge.
#[derive(Debug)]
pub struct DriveFile {
    file: HostFile,
    copying: Option<JoinHandle<Result<(), JailError>>>,
}

impl DriveFile {
    /// The file as it is.
    pub(crate) fn itself(file: HostFile) -> Self {
        Self {
            file,
            copying: None,
        }
    }

    /// `file` has its length, mode and owner; `fill` blocks until it has its content.
    pub(crate) fn copied(
        file: HostFile,
        fill: impl FnOnce() -> Result<(), JailError> + Send + 'static,
    ) -> Self {
        Self {
            file,
            copying: Some(tokio::task::spawn_blocking(fill)),
        }
    }

    /// The file, to be shown to the VMM. Its length, mode and owner are final; what is in it is not, before
    /// [`DriveFile::complete`].
    #[must_use]
    pub fn file(&self) -> &HostFile {
        &self.file
    }

    /// Waits until the content is there.
    ///
    /// # Errors
    /// [`JailError::Copy`].
    pub async fn complete(self) -> Result<HostFile, JailError> {
        if let Some(copying) = self.copying {
            let path = self.file.path().to_owned();
            copying.await.unwrap_or_else(|stopped| {
                let source = io::Error::other(stopped);
                Err(JailError::Copy { path, source })
            })?;
        }
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn complete_is_when_it_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        let file = || HostFile::create(&dir.path().join("copy")).unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let filled = DriveFile::copied(file(), move || {
            wait.recv().unwrap();
            Ok(())
        });
        assert!(filled.file().path().ends_with("copy"));
        let complete = tokio::spawn(filled.complete());
        tokio::task::yield_now().await;
        assert!(!complete.is_finished());
        go.send(()).unwrap();
        complete.await.unwrap().unwrap();

        let failed = DriveFile::copied(file(), || {
            Err(JailError::Copy {
                path: "/image".into(),
                source: io::ErrorKind::StorageFull.into(),
            })
        });
        let error = failed.complete().await.unwrap_err();
        assert_eq!(error.to_string(), "Cannot copy /image into the jail");
    }
}
