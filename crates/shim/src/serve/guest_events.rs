//! Events of the guest: polled, checked, translated into the host's terms, and forwarded.

use std::sync::Arc;
use std::time::Duration;

use fc_proto::containerd::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO,
    TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use fc_proto::containerd::shim::event::Envelope;
use fc_proto::guest::{EVENT_GETTER_METHOD, EVENT_GETTER_SERVICE, NextEventRequest, feature};
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::protobuf::{self, Message, MessageField};
use fc_proto::task::call;
use fc_proto::ttrpc::Error as RpcError;
use fc_vm::machine::Guest;

use super::link;
use super::shim::{Running, Shim};
use super::tasks::Task;

/// How long a VMM may live on after its guest's agent vanished.
const ORPHAN_BOUND: Duration = Duration::from_secs(2);

/// Forwards the guest's events until the VM ends. A VM whose agent is gone for good is ended.
pub async fn follow(shim: Arc<Shim>, running: Arc<Running>) {
    let guest = running.machine.guest();
    let mut source = Source::new(guest);
    loop {
        let before = link::now(guest);
        match source.next(guest).await {
            Ok(event) => forward(&shim, &running, event).await,
            Err(RpcError::RpcStatus(status)) => {
                tracing::warn!("The guest gives no events: {}", status.message);
                return;
            }
            Err(error) => {
                if !link::regained(guest, before).await {
                    return end_orphan(&shim, &running, &error).await;
                }
                link::look_again(&shim, &running).await;
            }
        }
    }
}

/// Ends a VM that nobody can speak to any more, unless it is ending by itself.
async fn end_orphan(shim: &Shim, running: &Running, error: &RpcError) {
    let end = tokio::time::timeout(ORPHAN_BOUND, running.machine.exited()).await;
    if end.is_ok() {
        return;
    }
    tracing::error!(
        "The connection to the agent broke and did not come back, so the VM ends: {error}"
    );
    shim.set_end_reason(
        "it was ended, because the connection to its agent broke and did not come back",
    );
    if let Err(error) = running.machine.kill().await {
        tracing::error!("{error}");
    }
}

/// How the guest's agent gives events.
enum Source {
    /// With numbers; it keeps each until the next is asked for. Holds the last one's.
    Numbered(u64),
    /// The original's way: one that is under way when the connection breaks is lost.
    Plain,
}

impl Source {
    fn new(guest: &Guest) -> Self {
        if guest.has(feature::NUMBERED_EVENTS) {
            Self::Numbered(0)
        } else {
            Self::Plain
        }
    }

    async fn next(&mut self, guest: &Guest) -> Result<Envelope, RpcError> {
        let context = guest.context();
        let Self::Numbered(last) = self else {
            let client = guest.client();
            let (service, method) = (EVENT_GETTER_SERVICE, EVENT_GETTER_METHOD);
            return call(&client, context, service, method, &Empty::default()).await;
        };
        let request = NextEventRequest {
            after: *last,
            ..NextEventRequest::default()
        };
        let event = guest.agent().next_event(context, &request).await?;
        if event.lost > 0 {
            tracing::error!("The guest had no room for {} events", event.lost);
        }
        *last = event.number;
        Ok(Envelope {
            timestamp: event.timestamp,
            namespace: event.namespace,
            topic: event.topic,
            event: event.event,
            ..Envelope::default()
        })
    }
}

async fn forward(shim: &Shim, running: &Running, mut envelope: Envelope) {
    match translate(shim, running, &mut envelope).await {
        Ok(deleted) => {
            // A guest speaks for its own VM only.
            envelope.namespace = shim.dir.namespace().to_owned();
            shim.events.forward(envelope);
            if let Some(task) = deleted {
                task.deletion_published.notify_one();
            }
        }
        Err(refused) => tracing::debug!(topic = envelope.topic, "Event of the guest: {refused}"),
    }
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("Not an event of a task")]
    Topic,
    #[error("Malformed")]
    Malformed(#[from] protobuf::Error),
    #[error("Of no task of this VM")]
    Task,
}

/// Replaces the guest's process ids and paths; answers the task if the event ends it.
async fn translate(
    shim: &Shim,
    running: &Running,
    envelope: &mut Envelope,
) -> Result<Option<Arc<Task>>, Refused> {
    let Some(any) = envelope.event.as_mut() else {
        return Err(Refused::Topic);
    };
    let value = &mut any.value;
    match envelope.topic.as_str() {
        "/tasks/create" => {
            let mut event = TaskCreate::parse_from_bytes(value)?;
            let task = known(shim, &event.container_id).await?;
            let stdio = &task.init.stdio;
            event.bundle = task.bundle.display().to_string();
            event.rootfs.clone_from(&task.rootfs);
            event.io = MessageField::some(TaskIO {
                stdin: stdio.stdin.clone(),
                stdout: stdio.stdout.clone(),
                stderr: stdio.stderr.clone(),
                terminal: stdio.terminal,
                ..TaskIO::default()
            });
            event.pid = shim.pid(running, event.pid);
            *value = event.write_to_bytes()?;
        }
        "/tasks/start" => {
            let mut event = TaskStart::parse_from_bytes(value)?;
            known(shim, &event.container_id).await?;
            event.pid = shim.pid(running, event.pid);
            *value = event.write_to_bytes()?;
        }
        "/tasks/exit" => {
            let mut event = TaskExit::parse_from_bytes(value)?;
            known(shim, &event.container_id).await?;
            if event.id == event.container_id {
                event.pid = shim.pid(running, event.pid);
            }
            *value = event.write_to_bytes()?;
        }
        "/tasks/delete" => {
            let mut event = TaskDelete::parse_from_bytes(value)?;
            let task = known(shim, &event.container_id).await?;
            if event.id.is_empty() || event.id == event.container_id {
                event.pid = shim.pid(running, event.pid);
                *value = event.write_to_bytes()?;
                return Ok(Some(task));
            }
        }
        "/tasks/oom" => check::<TaskOOM>(shim, value, |e| &e.container_id).await?,
        "/tasks/exec-added" => check::<TaskExecAdded>(shim, value, |e| &e.container_id).await?,
        "/tasks/exec-started" => check::<TaskExecStarted>(shim, value, |e| &e.container_id).await?,
        "/tasks/paused" => check::<TaskPaused>(shim, value, |e| &e.container_id).await?,
        "/tasks/resumed" => check::<TaskResumed>(shim, value, |e| &e.container_id).await?,
        "/tasks/checkpointed" => {
            check::<TaskCheckpointed>(shim, value, |e| &e.container_id).await?;
        }
        _ => return Err(Refused::Topic),
    }
    Ok(None)
}

async fn check<M: Message>(
    shim: &Shim,
    value: &[u8],
    container_id: impl Fn(&M) -> &String,
) -> Result<(), Refused> {
    let event = M::parse_from_bytes(value)?;
    known(shim, container_id(&event)).await.map(drop)
}

/// The task of an event. Its creation may still be under way on the host's side, and may fail.
async fn known(shim: &Shim, id: &str) -> Result<Arc<Task>, Refused> {
    shim.tasks.get_settled(id).await.map_err(|_| Refused::Task)
}
