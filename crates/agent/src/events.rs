//! Events about tasks, kept until the host has them.
//!
//! Every event has a number. `Agent.NextEvent` names the last one that has arrived and gets the
//! next, on whatever connection. The original's `GetEvent` has no numbers: the host is known to
//! have an event when it polls again on the same connection; an event whose fate is unknown when a
//! new connection polls is sent once more. So events arrive at least once and in order.

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
    /// With consecutive numbers, the last of which is `last`.
    waiting: VecDeque<Envelope>,
    /// Number of the newest event; they count from 1.
    last: u64,
    /// How many before the first one waiting were dropped.
    lost: u64,
    /// What `GetEvent` gave out last: the number of the request and that of the event.
    polled: Option<(u32, u64)>,
}

/// An event, as the host gets it.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbered {
    /// Its number.
    pub number: u64,
    /// How many events just before it were dropped.
    pub lost: u64,
    /// The event.
    pub envelope: Envelope,
}

/// The host has seen the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Event {after} has not happened yet, the last one is {last}; start again from 0")]
pub struct NoSuchEvent {
    after: u64,
    last: u64,
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

    /// Forgets events up to number `after` and waits for the next one, which stays.
    ///
    /// # Errors
    /// When there was no event with that number.
    pub async fn next(&self, after: u64) -> Result<Numbered, NoSuchEvent> {
        loop {
            let added = self.0.added.notified();
            {
                let mut queue = self.lock();
                if after > queue.last {
                    let last = queue.last;
                    return Err(NoSuchEvent { after, last });
                }
                queue.forget(after);
                if let Some(event) = queue.first() {
                    return Ok(event);
                }
            }
            added.await;
        }
    }

    /// Waits for the next event, on behalf of request number `request` of the original's poll.
    async fn poll(&self, request: u32) -> Envelope {
        loop {
            let added = self.0.added.notified();
            if let Some(envelope) = self.lock().poll(request) {
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
            self.lost += 1;
            if self.lost.is_power_of_two() {
                say!("{} events dropped: the host does not fetch them", self.lost);
            }
        }
        self.waiting.push_back(envelope);
        self.last += 1;
    }

    /// Number of the first event that waits, or would.
    fn first_number(&self) -> u64 {
        self.last + 1 - self.waiting.len() as u64
    }

    fn first(&self) -> Option<Numbered> {
        self.waiting.front().map(|envelope| Numbered {
            number: self.first_number(),
            lost: self.lost,
            envelope: envelope.clone(),
        })
    }

    /// The host has the events up to `number`.
    fn forget(&mut self, number: u64) {
        while self.first_number() <= number && self.waiting.pop_front().is_some() {
            self.lost = 0;
        }
    }

    fn poll(&mut self, request: u32) -> Option<Envelope> {
        // Requests on one connection have growing numbers; a smaller one is of a new connection,
        // whose host may not have got the last answer.
        if let Some((last, number)) = self.polled.take()
            && request > last
        {
            self.forget(number);
        }
        let event = self.first()?;
        self.polled = Some((request, event.number));
        Some(event.envelope)
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
        let envelope = self.0.poll(context.mh.stream_id).await;
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
            .filter_map(|request| queue.poll(*request).map(|e| e.topic))
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
    fn a_poll_without_an_event_keeps_what_was_unconfirmed() {
        let mut queue = Queue::default();
        queue.push(envelope("a"));
        assert_eq!(topics(&mut queue, &[5, 7]), ["a"]);
        queue.push(envelope("b"));
        assert_eq!(topics(&mut queue, &[1]), ["b"]);
    }

    #[test]
    fn the_oldest_events_are_dropped_and_counted() {
        let mut queue = Queue::default();
        for number in 1..=CAPACITY + 2 {
            queue.push(envelope(&number.to_string()));
        }
        assert_eq!(queue.waiting.len(), CAPACITY);
        let first = queue.first().unwrap();
        assert_eq!((first.number, first.lost), (3, 2));
        assert_eq!(first.envelope.topic, "3");
        queue.forget(first.number);
        let next = queue.first().unwrap();
        assert_eq!((next.number, next.lost), (4, 0));
    }

    fn number(event: Result<Numbered, NoSuchEvent>) -> (u64, String) {
        let event = event.unwrap();
        (event.number, event.envelope.topic)
    }

    #[tokio::test]
    async fn an_event_stays_until_its_number_is_named() {
        let events = Events::default();
        let mut waiting = std::pin::pin!(events.next(0));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        events.publish("ns", topic::START, &Envelope::new());
        events.publish("ns", topic::EXIT, &Envelope::new());
        assert_eq!(number(waiting.await), (1, "/tasks/start".to_owned()));
        assert_eq!(number(events.next(0).await).0, 1);
        assert_eq!(number(events.next(1).await), (2, "/tasks/exit".to_owned()));
        assert_eq!(number(events.next(0).await).0, 2, "1 is forgotten");
        let future = events.next(3).await.unwrap_err();
        assert_eq!(future, NoSuchEvent { after: 3, last: 2 });
        assert!(futures_util::poll!(std::pin::pin!(events.next(2))).is_pending());
    }

    #[tokio::test]
    async fn a_poller_that_goes_away_takes_nothing_with_it() {
        let events = Events::default();
        let gone = tokio::spawn({
            let events = events.clone();
            async move { events.poll(1).await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        let _ = gone.await;
        events.publish("ns", topic::START, &Envelope::new());
        let event = events.poll(1).await;
        assert_eq!(
            (event.namespace.as_str(), event.topic.as_str()),
            ("ns", "/tasks/start")
        );
    }
}
