//! Events of the guest: polled, checked, translated into the host's terms, and forwarded.

use std::sync::Arc;
use std::time::Duration;

use fc_client::text::excerpt;
use fc_proto::containerd::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO,
    TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use fc_proto::containerd::shim::event::Envelope;
use fc_proto::guest::{EVENT_GETTER_METHOD, EVENT_GETTER_SERVICE, NextEventRequest, feature};
use fc_proto::protobuf::well_known_types::any::Any;
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::protobuf::well_known_types::timestamp::Timestamp;
use fc_proto::protobuf::{self, Message, MessageField, MessageFull};
use fc_proto::task::call;
use fc_proto::ttrpc::{Code, Error as RpcError, Status};
use fc_vm::machine::Guest;
use tokio::task::JoinHandle;

use super::link;
use super::process::{Exit, Process};
use super::shim::{Running, Shim};
use super::tasks::Task;

/// How long a VMM may live on after its guest's agent vanished.
const ORPHAN_BOUND: Duration = Duration::from_secs(2);
/// How long an event may take that was received when the VM ended.
const LAST_EVENT_BOUND: Duration = Duration::from_millis(500);
/// Longest event that a guest may send: topic and payload together, in bytes.
const MAX_EVENT: usize = 64 << 10;
/// Pauses after the guest's agent answered that it has no event for us now.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

/// Forwards the guest's events until the VM ends. A VM whose agent is gone for good is ended.
pub async fn follow(shim: Arc<Shim>, running: Arc<Running>) {
    let guest = running.machine.guest();
    let mut source = Source::new(guest);
    let mut pause = RETRY[0];
    loop {
        let before = link::now(guest);
        match source.next(guest).await {
            Ok(event) => {
                pause = RETRY[0];
                let shown_pid = |pid| shim.pid(&running, pid);
                forward(&shim, shown_pid, event).await;
            }
            Err(RpcError::RpcStatus(status)) => {
                let said = excerpt(&status.message);
                if has_no_events(&status) {
                    tracing::warn!("The guest gives no events: {said}");
                    return;
                }
                // The ends of its tasks come this way: whatever it was, the next may be one.
                tracing::warn!("The guest failed to give its next event: {said}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY[1]);
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

/// After the VM's end: lets [`follow`] forward what it has received, and nothing later. What is published of the
/// VM's end can then be neither too early nor said twice.
pub async fn finish(mut follow: JoinHandle<()>) {
    if tokio::time::timeout(LAST_EVENT_BOUND, &mut follow)
        .await
        .is_err()
    {
        follow.abort();
    }
}

/// Whether the guest's agent does not have the call at all, in the words of the RPC libraries for Go and Rust.
fn has_no_events(status: &Status) -> bool {
    match status.code() {
        Code::UNIMPLEMENTED => true,
        Code::INVALID_ARGUMENT => status.message.ends_with(" service does not exist"),
        _ => false,
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

async fn forward(shim: &Shim, shown_pid: impl Fn(u32) -> u32, event: Envelope) {
    match translate(shim, shown_pid, &event).await {
        Ok((envelope, news)) => {
            shim.events.forward(envelope);
            match news {
                News::Exit(process, exit) => process.set_published(exit),
                News::Deleted(task) => task.deletion_published.notify_one(),
                News::Other => {}
            }
        }
        Err(refused @ Refused::Length(_)) => tracing::warn!("Event of the guest: {refused}"),
        Err(refused) => {
            tracing::debug!(
                topic = excerpt(&event.topic),
                "Event of the guest: {refused}"
            );
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Refused {
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
enum News {
    /// A process has ended.
    Exit(Arc<Process>, Exit),
    /// The task is gone.
    Deleted(Arc<Task>),
    /// Nothing.
    Other,
}

/// The event as the host may see it: the host's process ids and paths in place of the guest's, and nothing
/// that an event of its topic does not have.
async fn translate(
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
fn plain(time: &MessageField<Timestamp>) -> MessageField<Timestamp> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::ttrpc::get_status;

    /// What the guest sends, with a field that nobody knows in every message of it.
    fn sent<M: MessageFull>(topic: &str, mut event: M) -> Envelope {
        let unknown = || vec![7; 100];
        event
            .mut_unknown_fields()
            .add_length_delimited(900, unknown());
        let mut envelope = Envelope {
            timestamp: MessageField::some(Timestamp::now()),
            namespace: "another".to_owned(),
            topic: topic.to_owned(),
            event: MessageField::some(Any {
                type_url: "containerd.events.Another".to_owned(),
                value: event.write_to_bytes().unwrap(),
                ..Any::default()
            }),
            ..Envelope::default()
        };
        envelope
            .mut_unknown_fields()
            .add_length_delimited(900, unknown());
        envelope
    }

    fn exit_of(id: &str) -> TaskExit {
        let mut at = Timestamp::now();
        at.mut_unknown_fields().add_varint(900, 1);
        TaskExit {
            container_id: "a".to_owned(),
            id: id.to_owned(),
            pid: 5,
            exit_status: 3,
            exited_at: MessageField::some(at),
            ..TaskExit::default()
        }
    }

    #[tokio::test]
    async fn what_an_event_does_not_have_stays_in_the_guest() {
        let shim = Shim::for_test();
        let task = Task::for_test(&shim, "a");
        forward(&shim, |_| 42, sent("/tasks/exit", exit_of("a"))).await;
        let waiting = shim.events.waiting();
        let [event] = waiting.as_slice() else {
            panic!("{waiting:?}");
        };
        assert_eq!(event.namespace, "ns");
        assert_eq!(event.event.type_url, "containerd.events.TaskExit");
        assert_eq!(event.unknown_fields().iter().count(), 0);
        let exit = TaskExit::parse_from_bytes(&event.event.value).unwrap();
        let expected = TaskExit {
            pid: 42,
            exited_at: plain(&exit.exited_at),
            ..exit_of("a")
        };
        assert_eq!(exit, expected);
        assert_eq!(task.init.published().unwrap().status, 3);
    }

    #[tokio::test]
    async fn long_events_and_those_of_others_are_skipped() {
        let shim = Shim::for_test();
        let task = Task::for_test(&shim, "a");
        let long = "x".repeat(MAX_EVENT);
        forward(&shim, |_| 42, sent("/tasks/exit", exit_of(&long))).await;
        forward(&shim, |_| 42, sent(&long, exit_of("a"))).await;
        let of_another = TaskOOM {
            container_id: "b".to_owned(),
            ..TaskOOM::default()
        };
        forward(&shim, |_| 42, sent("/tasks/oom", of_another)).await;
        assert!(shim.events.waiting().is_empty());
        assert!(task.init.published().is_none());
        let own = TaskOOM {
            container_id: "a".to_owned(),
            ..TaskOOM::default()
        };
        forward(&shim, |_| 42, sent("/tasks/oom", own)).await;
        assert_eq!(shim.events.waiting().len(), 1);
    }

    #[test]
    fn only_an_agent_without_the_call_has_no_events() {
        let absent = [
            get_status(Code::UNIMPLEMENTED, "service x"),
            get_status(Code::INVALID_ARGUMENT, "x service does not exist"),
        ];
        assert!(absent.iter().all(has_no_events));
        let failed = [
            get_status(Code::INTERNAL, "x"),
            get_status(Code::INVALID_ARGUMENT, "message length 5 exceed maximum"),
            get_status(Code::UNKNOWN, "x service does not exist"),
        ];
        assert!(!failed.iter().any(has_no_events));
    }
}
