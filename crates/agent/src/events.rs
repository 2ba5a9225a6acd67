//! Events about tasks, on their way to the host's long-poll.
//!
//! The service is the original's: the host calls `GetEvent` again and again, each answer is one
//! `containerd.types.Envelope`. The host is known to have an event when it polls again on the same
//! connection; an event whose fate is unknown when a new connection polls is sent once more. So
//! events arrive at least once and in order.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use fc_proto::containerd::shim::event::Envelope;
use fc_proto::guest::{EVENT_GETTER_METHOD, EVENT_GETTER_SERVICE};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use tokio::sync::Notify;
use ttrpc::asynchronous::{MethodHandler, Service, TtrpcContext};
use ttrpc::{Code, Request, Response};

use crate::say;

/// Events kept for a host that does not poll; then the oldest are dropped.
const CAPACITY: usize = 4096;

/// What a kind of event is called.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// For subscribers.
    pub name: &'static str,
    /// The message's type.
    pub type_url: &'static str,
}

macro_rules! topics {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $message:literal;)*) => {
        /// Topics of containerd's task events.
        pub mod topic {
            use super::Topic;
            $($(#[$doc])* pub const $constant: Topic = Topic {
                name: concat!("/tasks/", $name),
                type_url: concat!("containerd.events.", $message),
            };)*
        }
    };
}

topics! {
    /// A container was created.
    CREATE = "create", "TaskCreate";
    /// Its init was started.
    START = "start", "TaskStart";
    /// The kernel killed one of its processes for lack of memory.
    OOM = "oom", "TaskOOM";
    /// A process ended.
    EXIT = "exit", "TaskExit";
    /// A process or the whole container was deleted.
    DELETE = "delete", "TaskDelete";
    /// A further process was described.
    EXEC_ADDED = "exec-added", "TaskExecAdded";
    /// And started.
    EXEC_STARTED = "exec-started", "TaskExecStarted";
    /// A container was frozen.
    PAUSED = "paused", "TaskPaused";
    /// And thawed.
    RESUMED = "resumed", "TaskResumed";
}

/// The queue of events. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    added: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Envelope>,
    /// The event last given out, and the number of the request that got it.
    sent: Option<(u32, Envelope)>,
    dropped: u64,
}

impl Events {
    /// Queues an event of `namespace` that happens now.
    pub fn publish(&self, namespace: &str, topic: Topic, event: &impl Message) {
        let mut any = Any::new();
        topic.type_url.clone_into(&mut any.type_url);
        // Fails only on messages of 2 GiB.
        any.value = event.write_to_bytes().unwrap_or_default();
        let mut envelope = Envelope::new();
        envelope.timestamp = MessageField::some(timestamp(SystemTime::now()));
        namespace.clone_into(&mut envelope.namespace);
        topic.name.clone_into(&mut envelope.topic);
        envelope.event = MessageField::some(any);
        self.lock().push(envelope);
        self.0.added.notify_waiters();
    }

    /// Waits for the next event, on behalf of request number `request`.
    async fn next(&self, request: u32) -> Envelope {
        loop {
            let added = self.0.added.notified();
            if let Some(envelope) = self.lock().take(request) {
                return envelope;
            }
            added.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, envelope: Envelope) {
        if self.waiting.len() >= CAPACITY {
            self.waiting.pop_front();
            self.dropped += 1;
            if self.dropped.is_power_of_two() {
                say!(
                    "{} events dropped: the host does not fetch them",
                    self.dropped
                );
            }
        }
        self.waiting.push_back(envelope);
    }

    fn take(&mut self, request: u32) -> Option<Envelope> {
        // Requests on one connection have growing numbers; a smaller one is of a new connection,
        // whose host may not have got the last answer.
        if let Some((last, envelope)) = self.sent.take()
            && request <= last
        {
            self.waiting.push_front(envelope);
        }
        let envelope = self.waiting.pop_front()?;
        self.sent = Some((request, envelope.clone()));
        Some(envelope)
    }
}

/// The service that gives the events out, for registration.
#[must_use]
pub fn service(events: Events) -> HashMap<String, Service> {
    let getter: Box<dyn MethodHandler + Send + Sync> = Box::new(Getter(events));
    let service = Service {
        methods: HashMap::from([(EVENT_GETTER_METHOD.to_owned(), getter)]),
        streams: HashMap::new(),
    };
    HashMap::from([(EVENT_GETTER_SERVICE.to_owned(), service)])
}

struct Getter(Events);

#[async_trait]
impl MethodHandler for Getter {
    async fn handler(&self, context: TtrpcContext, _: Request) -> ttrpc::Result<Response> {
        let envelope = self.0.next(context.mh.stream_id).await;
        let mut response = Response::new();
        response.set_status(ttrpc::get_status(Code::OK, ""));
        response.payload = envelope
            .write_to_bytes()
            .map_err(|error| ttrpc::Error::Others(error.to_string()))?;
        Ok(response)
    }
}

/// A time as protobuf has it.
#[must_use]
pub fn timestamp(time: SystemTime) -> Timestamp {
    // The guest's clock may not have been set yet, but it never is before 1970.
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut timestamp = Timestamp::new();
    timestamp.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    timestamp.nanos = i32::try_from(since.subsec_nanos()).unwrap_or(0);
    timestamp
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str) -> Envelope {
        let mut envelope = Envelope::new();
        envelope.topic = topic.to_owned();
        envelope
    }

    fn topics(queue: &mut Queue, requests: &[u32]) -> Vec<String> {
        requests
            .iter()
            .filter_map(|request| queue.take(*request).map(|e| e.topic))
            .collect()
    }

    #[test]
    fn events_come_in_order() {
        let mut queue = Queue::default();
        queue.push(envelope("a"));
        queue.push(envelope("b"));
        assert_eq!(topics(&mut queue, &[5, 7, 9]), ["a", "b"]);
    }

    #[test]
    fn a_new_connection_gets_the_unconfirmed_event_again() {
        let mut queue = Queue::default();
        queue.push(envelope("a"));
        queue.push(envelope("b"));
        assert_eq!(topics(&mut queue, &[5, 7]), ["a", "b"]);
        assert_eq!(topics(&mut queue, &[1, 3]), ["b"]);
    }

    #[test]
    fn the_oldest_events_are_dropped() {
        let mut queue = Queue::default();
        for number in 0..=CAPACITY {
            queue.push(envelope(&number.to_string()));
        }
        assert_eq!(queue.waiting.len(), CAPACITY);
        assert_eq!(topics(&mut queue, &[1]), ["1"]);
    }

    #[tokio::test]
    async fn a_poller_that_goes_away_takes_nothing_with_it() {
        let events = Events::default();
        let gone = tokio::spawn({
            let events = events.clone();
            async move { events.next(1).await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        let _ = gone.await;
        events.publish("ns", topic::START, &Envelope::new());
        let event = events.next(1).await;
        assert_eq!(
            (event.namespace.as_str(), event.topic.as_str()),
            ("ns", "/tasks/start")
        );
    }
}
