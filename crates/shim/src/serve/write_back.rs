//! What a container wrote, brought back to its snapshot (annotation `aws.firecracker.disk.write_back`).
//!
//! A guest may be hostile: each of its steps has a bound, so that it delays a Pause or a Delete and can do no more.

mod pace;

use std::io::{BufReader, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use fc_client::text::excerpt;
use fc_proto::guest::{ExportUpperRequest, feature};
use fc_proto::task::api::{CreateTaskRequest, StateRequest, Status};
use fc_proto::ttrpc::{Code, Error as RpcError};
use fc_rootfs::{ImportError, TarError, import_upper, upper_dir};
use tokio::sync::{Mutex, Notify};
use tokio::time::{sleep, timeout};

use super::create::lost;
use super::error::{CallError, InvalidRequest, Unsupported};
use super::files::as_mounts;
use super::shim::{Running, Shim};
use crate::bundle::Spec;
use pace::{Pace, Paced};

/// How long the guest may take to connect.
const CONNECT_BOUND: Duration = Duration::from_secs(30);
/// How long the guest may take to answer once its stream has ended.
const ANSWER_BOUND: Duration = Duration::from_secs(30);
/// Bytes that are read at once.
const BUFFER: usize = 64 << 10;
/// Most names in the log.
const MAX_NAMES: usize = 100;

/// Held while something is brought back. The agent sends one container's layer at a time, and the bounds are to
/// measure this one, not those before it. A shim has one VM.
static TURN: Mutex<()> = Mutex::const_new(());

/// Why nothing was brought back; the snapshot is as it was.
#[derive(Debug, thiserror::Error)]
pub enum WriteBackError {
    /// It is to be deleted, and the guest would refuse that.
    #[error("It still runs: kill it and wait for its end before deleting it")]
    Runs,
    /// What the guest sent cannot be used, or not be written.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The guest's connection.
    #[error("The guest's connection failed")]
    Connection(#[source] std::io::Error),
    /// The guest does not begin.
    #[error("The guest did not connect within {} s to send it", CONNECT_BOUND.as_secs())]
    NoConnection,
    /// The guest does not go on, or nearly so.
    #[error(
        "The guest stalled: it sent less than {} KiB in {} s ({} s at the start) and did not end its stream",
        Pace::GUEST.bytes >> 10,
        Pace::GUEST.then.as_secs(),
        Pace::GUEST.start.as_secs()
    )]
    Stalled,
    /// The guest does not say what it has sent.
    #[error("The guest did not answer within {} s of its stream's end", ANSWER_BOUND.as_secs())]
    Unanswered,
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
        let upper =
            upper_dir(&as_mounts(&request.rootfs)).ok_or(InvalidRequest::NoUpperDirectory)?;
        if !running.machine.guest().has(feature::EXPORT_UPPER) {
            return Err(Unsupported::WriteBack.into());
        }
        let limit = spec.disk_size(&shim.config)?;
        Ok(Some(Self { upper, limit }))
    }

    /// Brings back what the container `id` has written, before it is deleted.
    ///
    /// # Errors
    /// When it runs, and as [`WriteBack::run`]'s; the snapshot is as it was then.
    pub async fn run_last(
        &self,
        shim: &Shim,
        running: &Running,
        id: &str,
    ) -> Result<(), CallError> {
        let guest = running.machine.guest();
        let request = StateRequest {
            id: id.to_owned(),
            ..StateRequest::default()
        };
        match guest.tasks().state(guest.context(), &request).await {
            Ok(state) => match state.status.enum_value() {
                Ok(Status::RUNNING | Status::PAUSED) => Err(CallError::WriteBack {
                    task: id.to_owned(),
                    source: WriteBackError::Runs,
                }),
                _ => self.run(shim, running, id).await,
            },
            // An earlier attempt's deletion, which came after this; its answer was lost.
            Err(RpcError::RpcStatus(status)) if status.code() == Code::NOT_FOUND => Ok(()),
            Err(error) => Err(lost(shim, error)),
        }
    }

    /// Brings back what the container `id`, which does not run at the moment, has written.
    ///
    /// # Errors
    /// The guest's or the host's; the snapshot is as it was then.
    pub async fn run(&self, shim: &Shim, running: &Running, id: &str) -> Result<(), CallError> {
        let _turn = TURN.lock().await;
        let [port, ..] = running.ports.take();
        let wire = running.ports.wire(port)?;
        let connection = async { Ok(wire.connect().await?) };
        let guest = running.machine.guest();
        let request = ExportUpperRequest {
            container_id: id.to_owned(),
            port,
            ..ExportUpperRequest::default()
        };
        let agent = guest.agent();
        // However long the stream takes: `exchange` bounds it.
        let answer = async {
            let sent = agent.export_upper(guest.context(), &request).await;
            sent.map_err(|error| lost(shim, error))
        };
        let receive = async |stream| self.receive(stream, Pace::GUEST).await;
        let sent = exchange(id, connection, receive, answer).await?;
        left_out(sent.skipped_count, &sent.skipped);
        Ok(())
    }

    async fn receive(
        &self,
        stream: tokio::net::UnixStream,
        pace: Pace,
    ) -> Result<(), WriteBackError> {
        let stream = stream.into_std().map_err(WriteBackError::Connection)?;
        stream
            .set_nonblocking(false)
            .map_err(WriteBackError::Connection)?;
        // Should nobody wait any more, the thread below does not either.
        let _hang_up = HangUp(stream.try_clone().map_err(WriteBackError::Connection)?);
        let Self { upper, limit } = self.clone();
        let stream = BufReader::with_capacity(BUFFER, Paced::new(stream, pace));
        let imported = tokio::task::spawn_blocking(move || import_upper(stream, &upper, limit))
            .await
            .map_err(WriteBackError::Stopped)?
            .map_err(|error| match error {
                ImportError::Tar(TarError::Read(error)) => match error.kind() {
                    ErrorKind::TimedOut => WriteBackError::Stalled,
                    _ => WriteBackError::Connection(error),
                },
                other => WriteBackError::Import(other),
            })?;
        tracing::info!(
            entries = imported.entries,
            bytes = imported.bytes,
            "Brought back what the container wrote"
        );
        left_out(imported.skipped, &imported.first_skipped);
        Ok(())
    }
}

/// Receives what the guest sends over its connection until it ends, and waits for the guest's `answer` about it.
/// The first failure ends everything.
async fn exchange<S, A>(
    task: &str,
    connection: impl Future<Output = Result<S, CallError>>,
    receive: impl AsyncFnOnce(S) -> Result<(), WriteBackError>,
    answer: impl Future<Output = Result<A, CallError>>,
) -> Result<A, CallError> {
    let failed = |source| CallError::WriteBack {
        task: task.to_owned(),
        source,
    };
    let all_received = Notify::new();
    let receive = async {
        let connection = timeout(CONNECT_BOUND, connection).await;
        let connection = connection.map_err(|_| failed(WriteBackError::NoConnection))??;
        receive(connection).await.map_err(failed)?;
        all_received.notify_one();
        Ok(())
    };
    let unanswered = async {
        all_received.notified().await;
        sleep(ANSWER_BOUND).await;
    };
    let answer = async {
        tokio::select! {
            answer = answer => answer,
            () = unanswered => Err(failed(WriteBackError::Unanswered)),
        }
    };
    let (answer, ()) = tokio::try_join!(answer, receive)?;
    Ok(answer)
}

/// Logs what is not in the snapshot, by name as far as the names are known.
fn left_out(count: u64, names: &[String]) {
    if count > 0 {
        tracing::warn!("{count} things that the container wrote cannot be brought back");
    }
    for name in names.iter().take(MAX_NAMES) {
        tracing::warn!("Not brought back: {}", excerpt(name));
    }
}

/// Ends a connection when it is dropped, whoever reads from it.
struct HangUp(UnixStream);

impl Drop for HangUp {
    fn drop(&mut self) {
        // Fails only when the other side was quicker.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    fn reason<T>(result: Result<T, CallError>) -> WriteBackError {
        match result {
            Err(CallError::WriteBack { source, .. }) => source,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("no failure"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_never_connects_ends() {
        let start = Instant::now();
        let connection = pending::<Result<(), CallError>>();
        let answer = async { Ok(()) };
        let error = reason(exchange("c", connection, async |()| Ok(()), answer).await);
        assert!(matches!(error, WriteBackError::NoConnection), "{error}");
        assert_eq!(start.elapsed(), CONNECT_BOUND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_never_answers_ends() {
        let start = Instant::now();
        // As long as it sends, no answer is due.
        let sends = CONNECT_BOUND + 10 * ANSWER_BOUND;
        let receive = async |()| {
            sleep(sends).await;
            Ok(())
        };
        let answer = pending::<Result<(), CallError>>();
        let error = reason(exchange("c", async { Ok(()) }, receive, answer).await);
        assert!(matches!(error, WriteBackError::Unanswered), "{error}");
        assert_eq!(start.elapsed(), sends + ANSWER_BOUND);
    }

    #[tokio::test]
    async fn a_guest_that_stalls_ends_and_leaves_the_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("fs");
        std::fs::create_dir(&upper).unwrap();
        std::fs::write(upper.join("before"), "x").unwrap();
        let write_back = WriteBack {
            upper: upper.clone(),
            limit: 1 << 20,
        };
        let pace = Pace {
            start: Duration::from_millis(50),
            ..Pace::GUEST
        };
        // Held open, and silent.
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        let receive = async |stream| write_back.receive(stream, pace).await;
        let answer = pending::<Result<(), CallError>>();
        let error = reason(exchange("c", async { Ok(ours) }, receive, answer).await);
        assert!(matches!(error, WriteBackError::Stalled), "{error}");
        assert!(error.to_string().contains("256 KiB in 30 s"), "{error}");
        assert!(upper.join("before").exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
