//! An event of the guest in the host's terms. The guest is not trusted: what it says is bounded, of this VM, and no
//! more than an event of its topic has.

use std::sync::Arc;

use fc_proto::containerd::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO,
    TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use fc_proto::containerd::shim::event::Envelope;
use fc_proto::protobuf::well_known_types::any::Any;
use fc_proto::protobuf::well_known_types::timestamp::Timestamp;
use fc_proto::protobuf::{self, Message, MessageField, MessageFull};

use crate::serve::process::{Exit, Process};
use crate::serve::shim::Shim;
use crate::serve::tasks::Task;

/// Longest event that a guest may send: topic and payload together, in bytes.
pub(super) const MAX_EVENT: usize = 64 << 10;

/// Why an event is not forwarded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("It has {0} bytes, and {MAX_EVENT} are the most that an event may have")]
    Length(usize),
    #[error("Not an event of a task")]
    Topic,
    #[error("Malformed")]
    Malformed(#[from] protobuf::Error),
    #[error("Of no task of this VM")]
    Task,
}

/// What an event is to the shim itself.
pub(super) enum News {
    /// A process has ended.
    Exit(Arc<Process>, Exit),
    /// The task is gone.
    Deleted(Arc<Task>),
    /// Nothing.
    Other,
}

/// The event as the host may see it: the host's process ids and paths in place of the guest's, and nothing
/// that an event of its topic does not have.
pub(super) async fn translate(
    shim: &Shim,
    shown_pid: impl Fn(u32) -> u32,
    envelope: &Envelope,
) -> Result<(Envelope, News), Refused> {
    let Some(any) = envelope.event.as_ref() else {
        return Err(Refused::Topic);
    };
    let value = any.value.as_slice();
    let length = envelope.topic.len() + value.len();
    if length > MAX_EVENT {
        return Err(Refused::Length(length));
    }
    let mut news = News::Other;
    let payload = match envelope.topic.as_str() {
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
            event.pid = shown_pid(event.pid);
            encode(event)?
        }
        "/tasks/start" => {
            let mut event = TaskStart::parse_from_bytes(value)?;
            known(shim, &event.container_id).await?;
            event.pid = shown_pid(event.pid);
            encode(event)?
        }
        "/tasks/exit" => {
            let mut event = TaskExit::parse_from_bytes(value)?;
            let task = known(shim, &event.container_id).await?;
            let mut exec = event.id.as_str();
            if exec == event.container_id {
                event.pid = shown_pid(event.pid);
                exec = "";
            }
            event.exited_at = plain(&event.exited_at);
            // An exec may have been deleted meanwhile.
            if let Ok(process) = task.process(exec) {
                let exit = Exit {
                    status: event.exit_status,
                    at: event.exited_at.get_or_default().clone(),
                };
                news = News::Exit(process, exit);
            }
            encode(event)?
        }
        "/tasks/delete" => {
            let mut event = TaskDelete::parse_from_bytes(value)?;
            let task = known(shim, &event.container_id).await?;
            if event.id.is_empty() || event.id == event.container_id {
                event.pid = shown_pid(event.pid);
                news = News::Deleted(task);
            }
            event.exited_at = plain(&event.exited_at);
            encode(event)?
        }
        "/tasks/oom" => checked::<TaskOOM>(shim, value, |e| &e.container_id).await?,
        "/tasks/exec-added" => checked::<TaskExecAdded>(shim, value, |e| &e.container_id).await?,
        "/tasks/exec-started" => {
            checked::<TaskExecStarted>(shim, value, |e| &e.container_id).await?
        }
        "/tasks/paused" => checked::<TaskPaused>(shim, value, |e| &e.container_id).await?,
        "/tasks/resumed" => checked::<TaskResumed>(shim, value, |e| &e.container_id).await?,
        "/tasks/checkpointed" => {
            checked::<TaskCheckpointed>(shim, value, |e| &e.container_id).await?
        }
        _ => return Err(Refused::Topic),
    };
    let envelope = Envelope {
        timestamp: plain(&envelope.timestamp),
        // A guest speaks for its own VM only.
        namespace: shim.dir.namespace().to_owned(),
        topic: envelope.topic.clone(),
        event: MessageField::some(payload),
        ..Envelope::default()
    };
    Ok((envelope, news))
}

async fn checked<M: MessageFull>(
    shim: &Shim,
    value: &[u8],
    container_id: impl Fn(&M) -> &String,
) -> Result<Any, Refused> {
    let event = M::parse_from_bytes(value)?;
    known(shim, container_id(&event)).await?;
    encode(event)
}

/// The event under its own name, without fields that it does not have.
fn encode<M: MessageFull>(mut event: M) -> Result<Any, Refused> {
    event.mut_unknown_fields().clear();
    Ok(Any {
        type_url: M::descriptor().full_name().to_owned(),
        value: event.write_to_bytes()?,
        ..Any::default()
    })
}

/// The time without fields that a time does not have.
pub(super) fn plain(time: &MessageField<Timestamp>) -> MessageField<Timestamp> {
    let plain = time.as_ref().map(|time| Timestamp {
        seconds: time.seconds,
        nanos: time.nanos,
        ..Timestamp::default()
    });
    MessageField::from_option(plain)
}

/// The task of an event. Its creation may still be under way on the host's side, and may fail.
async fn known(shim: &Shim, id: &str) -> Result<Arc<Task>, Refused> {
    shim.tasks.get_settled(id).await.map_err(|_| Refused::Task)
}
