//! What a container wrote, brought back to its snapshot (annotation `aws.firecracker.disk.write_back`).

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use fc_proto::guest::{ExportUpperRequest, feature};
use fc_proto::task::api::CreateTaskRequest;
use fc_rootfs::{ImportError, WRITE_BACK_ANNOTATION, import_upper, upper_dir};
use tokio::sync::Notify;

use super::create::lost;
use super::error::CallError;
use super::files::as_mounts;
use super::shim::{Running, Shim};
use crate::bundle::Spec;

/// How long the host may take over the rest of what the guest has sent.
const REST_BOUND: Duration = Duration::from_secs(60);
/// Longest name in the log, in characters.
const MAX_NAME: usize = 512;
/// Most names in the log.
const MAX_NAMES: usize = 100;

/// Why nothing was brought back; the snapshot is as it was.
#[derive(Debug, thiserror::Error)]
pub enum WriteBackError {
    /// What the guest sent cannot be used, or not be written.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The guest's connection.
    #[error("The guest's connection failed")]
    Connection(#[source] std::io::Error),
    /// The guest said that it sent everything, and did not.
    #[error("The guest said that it sent everything, but the stream does not end")]
    Endless,
    /// The work ended without a result.
    #[error("The work was stopped")]
    Stopped(#[source] tokio::task::JoinError),
}

/// Where what a container writes is to be brought back to.
#[derive(Debug, Clone)]
pub struct WriteBack {
    /// The snapshot's upper directory.
    upper: PathBuf,
    /// Bytes that the container's disk holds.
    limit: u64,
}

impl WriteBack {
    /// What the container's annotation asks for.
    ///
    /// # Errors
    /// When there is no place to bring it back to, or the agent cannot send it.
    pub fn of(
        shim: &Shim,
        running: &Running,
        request: &CreateTaskRequest,
        spec: &Spec,
    ) -> Result<Option<Self>, CallError> {
        if !spec.write_back()? {
            return Ok(None);
        }
        let upper = upper_dir(&as_mounts(&request.rootfs)).ok_or_else(|| {
            CallError::Invalid(format!(
                "Annotation {WRITE_BACK_ANNOTATION} needs a snapshot that is a writable overlay: a read-only one, a plain directory or a device of its own has no upper directory to write to"
            ))
        })?;
        if !running.machine.guest().has(feature::EXPORT_UPPER) {
            return Err(CallError::Unsupported(format!(
                "The agent in this root image cannot send what a container wrote, which annotation {WRITE_BACK_ANNOTATION} asks for: use a root image of this version"
            )));
        }
        let limit = spec.disk_size(&shim.config)?;
        Ok(Some(Self { upper, limit }))
    }

    /// Brings back what the container `id`, which does not run at the moment, has written.
    ///
    /// # Errors
    /// The guest's or the host's; the snapshot is as it was then.
    pub async fn run(&self, shim: &Shim, running: &Running, id: &str) -> Result<(), CallError> {
        let [port, ..] = running.ports.take();
        let wire = running.ports.wire(port)?;
        let failed = |source| CallError::WriteBack {
            task: id.to_owned(),
            source,
        };
        let all_sent = Notify::new();
        let receive = async {
            let stream = wire.connect().await?;
            let endless = async {
                all_sent.notified().await;
                tokio::time::sleep(REST_BOUND).await;
            };
            tokio::select! {
                received = self.receive(stream) => received.map_err(failed),
                () = endless => Err(failed(WriteBackError::Endless)),
            }
        };
        let guest = running.machine.guest();
        let request = ExportUpperRequest {
            container_id: id.to_owned(),
            port,
            ..ExportUpperRequest::default()
        };
        let agent = guest.agent();
        let send = async {
            let sent = agent.export_upper(guest.context(), &request).await;
            all_sent.notify_one();
            sent.map_err(|error| lost(shim, error))
        };
        let (sent, ()) = tokio::try_join!(send, receive)?;
        left_out(sent.skipped_count, &sent.skipped);
        Ok(())
    }

    async fn receive(&self, stream: tokio::net::UnixStream) -> Result<(), WriteBackError> {
        let stream = stream.into_std().map_err(WriteBackError::Connection)?;
        stream
            .set_nonblocking(false)
            .map_err(WriteBackError::Connection)?;
        // Should nobody wait any more, the thread below does not either.
        let _hang_up = HangUp(stream.try_clone().map_err(WriteBackError::Connection)?);
        let Self { upper, limit } = self.clone();
        let imported = tokio::task::spawn_blocking(move || import_upper(stream, &upper, limit))
            .await
            .map_err(WriteBackError::Stopped)??;
        tracing::info!(
            entries = imported.entries,
            bytes = imported.bytes,
            "Brought back what the container wrote"
        );
        left_out(imported.skipped, &imported.first_skipped);
        Ok(())
    }
}

/// Logs what is not in the snapshot, by name as far as the names are known.
fn left_out(count: u64, names: &[String]) {
    if count > 0 {
        tracing::warn!("{count} things that the container wrote cannot be brought back");
    }
    for name in names.iter().take(MAX_NAMES) {
        tracing::warn!("Not brought back: {}", printable(name));
    }
}

/// A name that the guest chose, fit for a log.
fn printable(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(MAX_NAME)
        .collect()
}

/// Ends a connection when it is dropped, whoever reads from it.
struct HangUp(UnixStream);

impl Drop for HangUp {
    fn drop(&mut self) {
        // Fails only when the other side was quicker.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
