//! One attach or one detach of a slot, step by step.

use std::sync::Arc;

use fc_errors::chain;
use tokio::time::Instant;

use crate::backend::BackendError;
use crate::drives::{Attach, AttachedDrive, Inner};
use crate::error::{DriveError, Step};
use crate::slots::{Progress, Taken};

/// A slot that is being worked on. When this is dropped with the work half done (a backend panics, the
/// runtime ends), the slot is quarantined as it is: whoever waits for it goes on from there.
pub(crate) struct Work {
    inner: Arc<Inner>,
    taken: Taken,
    settled: bool,
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.settled {
            let reason = "The work on it was stopped half-way".to_owned();
            self.quarantine(reason);
        }
    }
}

impl Work {
    pub(crate) fn on(inner: Arc<Inner>, taken: Taken) -> Work {
        Work {
            inner,
            taken,
            settled: false,
        }
    }

    /// Attaches the file; what was done is undone when a step fails.
    pub(crate) async fn attach(mut self, request: Attach) -> Result<AttachedDrive, DriveError> {
        let begin = Instant::now();
        match self.attach_steps(&request).await {
            Ok(()) => {
                let us = micros(begin);
                tracing::debug!(drive = self.taken.stub, us, "drive attached");
                self.settled = true;
                self.inner.slots().attached(self.taken.id);
                self.inner.changed.notify_waiters();
                Ok(AttachedDrive {
                    slot: self.taken.id,
                    drive_id: self.taken.drive_id.clone(),
                    owner: request.owner,
                })
            }
            Err((step, source)) => {
                let drive_id = self.taken.drive_id.clone();
                let undo = self.bring_back().await.err().map(Box::new);
                Err(DriveError::Attach {
                    drive_id,
                    host_path: request.file.path().to_owned(),
                    owner: request.owner,
                    step,
                    source,
                    undo,
                })
            }
        }
    }

    async fn attach_steps(&mut self, request: &Attach) -> Result<(), (Step, BackendError)> {
        // A step counts as done before it is tried: an error does not tell how far it got.
        self.taken.progress = Progress::Exposed;
        let path = self
            .inner
            .exposer
            .expose(
                &exposed_name(&self.taken.stub),
                &request.file,
                self.taken.read_only,
            )
            .await
            .map_err(|error| (Step::Expose, error))?;
        self.taken.progress = Progress::Patched;
        self.inner
            .patcher
            .patch(&self.taken.drive_id, &path)
            .await
            .map_err(|error| (Step::Patch, error))?;
        self.taken.progress = Progress::Mounted;
        self.inner
            .mounter
            .mount(
                &self.taken.drive_id,
                &request.destination,
                &request.fstype,
                &request.options,
            )
            .await
            .map_err(|error| (Step::Mount, error))
    }

    /// Undoes what was done to the slot, and frees it, or quarantines it where it got stuck.
    pub(crate) async fn bring_back(mut self) -> Result<(), DriveError> {
        let begin = Instant::now();
        let result = self.bring_back_steps().await;
        let result = result.map_err(|(step, source)| DriveError::Detach {
            drive_id: self.taken.drive_id.clone(),
            step,
            source,
        });
        match &result {
            Ok(()) => {
                let us = micros(begin);
                tracing::debug!(drive = self.taken.stub, us, "drive released");
                self.settled = true;
                let file = self.inner.slots().freed(self.taken.id);
                drop(file);
                self.inner.changed.notify_waiters();
            }
            Err(error) => self.quarantine(chain(error)),
        }
        result
    }

    fn quarantine(&mut self, reason: String) {
        self.settled = true;
        let Taken { id, progress, .. } = self.taken;
        self.inner.slots().quarantine(id, progress, reason);
        self.inner.changed.notify_waiters();
    }

    async fn bring_back_steps(&mut self) -> Result<(), (Step, BackendError)> {
        if self.taken.progress >= Progress::Mounted {
            self.inner
                .mounter
                .unmount(&self.taken.drive_id)
                .await
                .map_err(|error| (Step::Unmount, error))?;
            self.taken.progress = Progress::Patched;
        }
        if self.taken.progress >= Progress::Patched {
            self.inner
                .patcher
                .patch(&self.taken.drive_id, &self.taken.stub)
                .await
                .map_err(|error| (Step::PatchBack, error))?;
            self.taken.progress = Progress::Exposed;
        }
        if self.taken.progress >= Progress::Exposed {
            self.inner
                .exposer
                .withdraw(&exposed_name(&self.taken.stub))
                .await
                .map_err(|error| (Step::Withdraw, error))?;
            self.taken.progress = Progress::Reserved;
        }
        Ok(())
    }
}

fn micros(since: Instant) -> u128 {
    since.elapsed().as_micros()
}

/// The fixed name of whatever the VMM sees instead of a stub.
fn exposed_name(stub: &str) -> String {
    format!("{stub}.attached")
}
