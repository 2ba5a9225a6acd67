//! Events of the guest: polled, translated into the host's terms, and forwarded.

mod translate;

use std::sync::Arc;
use std::time::Duration;

use fc_client::text::excerpt;
use fc_proto::containerd::shim::event::Envelope;
use fc_proto::guest::{EVENT_GETTER_METHOD, EVENT_GETTER_SERVICE, NextEventRequest, feature};
use fc_proto::protobuf::well_known_types::empty::Empty;
use fc_proto::task::call;
use fc_proto::ttrpc::{Code, Error as RpcError, Status};
use fc_vm::machine::Guest;
use tokio::task::JoinHandle;

use super::link;
use super::shim::{Running, Shim};
use translate::{News, Refused, translate};

/// How long a VMM may live on after its guest's agent vanished.
const ORPHAN_BOUND: Duration = Duration::from_secs(2);
/// How long an event may take that was received when the VM ended: after that the ends of its processes are told as if
/// they had been killed.
const LAST_EVENT_BOUND: Duration = Duration::from_secs(5);
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
                    running.set_without_events();
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

#[cfg(test)]
mod tests {
    use super::translate::{MAX_EVENT, plain};
    use super::*;
    use crate::serve::tasks::Task;
    use fc_proto::containerd::events::task::{TaskExit, TaskOOM};
    use fc_proto::protobuf::well_known_types::any::Any;
    use fc_proto::protobuf::well_known_types::timestamp::Timestamp;
    use fc_proto::protobuf::{Message, MessageField, MessageFull};
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
