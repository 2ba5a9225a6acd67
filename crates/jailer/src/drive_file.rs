//! The file to show for a drive, whose content may still be on its way.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fc_host_file::HostFile;
use tokio::task::JoinHandle;

use crate::error::JailError;

/// What the VMM gets for a root drive or a drive mount: the file itself, or a private copy that is being made while
/// the VMM starts. Dropped, also while it is being [completed](DriveFile::complete), the copy is given up.
#[derive(Debug)]
pub struct DriveFile {
    file: HostFile,
    copying: Option<Copying>,
}

/// The thread that makes a copy. It has the original open, and keeps its lock, until it ends.
#[derive(Debug)]
struct Copying {
    original: PathBuf,
    thread: JoinHandle<io::Result<()>>,
    given_up: Arc<AtomicBool>,
}

impl Drop for Copying {
    fn drop(&mut self) {
        // Otherwise it would fill the disk for nobody, and keep the process from ending.
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl DriveFile {
    /// The file as it is.
    pub(crate) fn itself(file: HostFile) -> Self {
        Self {
            file,
            copying: None,
        }
    }

    /// `file` has its length, mode and owner; `fill` blocks until it has the content of `original`, or what it gets has
    /// become true.
    pub(crate) fn copied(
        original: &Path,
        file: HostFile,
        fill: impl FnOnce(&AtomicBool) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let given_up = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&given_up);
        Self {
            file,
            copying: Some(Copying {
                original: original.to_owned(),
                thread: tokio::task::spawn_blocking(move || fill(&seen)),
                given_up,
            }),
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
        let Self { file, copying } = self;
        if let Some(mut copying) = copying {
            let copied = (&mut copying.thread).await.map_err(io::Error::other);
            copied.flatten().map_err(|source| JailError::Copy {
                path: copying.original.clone(),
                to: file.path().to_owned(),
                source,
            })?;
        }
        Ok(file)
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
        let original = Path::new("/image");
        let filled = DriveFile::copied(original, file(), move |_| {
            wait.recv().unwrap();
            Ok(())
        });
        assert!(filled.file().path().ends_with("copy"));
        let complete = tokio::spawn(filled.complete());
        tokio::task::yield_now().await;
        assert!(!complete.is_finished());
        go.send(()).unwrap();
        complete.await.unwrap().unwrap();

        let full = |_: &AtomicBool| Err(io::ErrorKind::StorageFull.into());
        let failed = DriveFile::copied(original, file(), full);
        let error = failed.complete().await.unwrap_err().to_string();
        assert!(error.starts_with("Cannot copy /image to /"), "{error}");
        let stopped = DriveFile::copied(original, file(), |_| panic!("as a broken program does"));
        let error = stopped.complete().await.unwrap_err().to_string();
        assert!(error.starts_with("Cannot copy /image to /"), "{error}");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (ended, end) = std::sync::mpsc::channel();
        let endless = |name: &str| {
            let ended = ended.clone();
            let file = HostFile::create(&dir.path().join(name)).unwrap();
            DriveFile::copied(Path::new("/image"), file, move |given_up| {
                while !given_up.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
                ended.send(()).unwrap();
                Ok(())
            })
        };
        drop(endless("dropped"));
        end.recv().unwrap();
        tokio::select! {
            biased;
            _ = endless("completing").complete() => panic!("it has no end"),
            () = std::future::ready(()) => {}
        }
        end.recv().unwrap();
    }
}
