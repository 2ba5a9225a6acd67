//! Events for containerd: a queue that keeps their order and survives a restart of containerd.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fc_proto::containerd::shim::event::Envelope;
use fc_proto::containerd::shim::events::ForwardRequest;
use fc_proto::containerd::shim_async::EventsClient;
use fc_proto::protobuf::well_known_types::any::Any;
use fc_proto::protobuf::well_known_types::timestamp::Timestamp;
use fc_proto::protobuf::{self, MessageField, MessageFull};
use fc_proto::ttrpc::{self, Error as RpcError};
use tokio::sync::watch;

use crate::client;

/// Events that are kept while containerd does not take them.
const CAPACITY: usize = 4096;
/// How long containerd may take over one event.
const FORWARD_BOUND: Duration = Duration::from_secs(5);
/// Pauses between attempts to reach a containerd that is away.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// The queue and its sender.
pub struct Events {
    queue: Arc<Queue>,
    namespace: String,
}

struct Queue {
    waiting: Mutex<VecDeque<Envelope>>,
    length: watch::Sender<usize>,
}

impl Events {
    /// Sends events to the containerd whose ttrpc socket is at `address`, beginning with the
    /// first event. Events of the VM itself belong to `namespace`.
    pub fn new(address: PathBuf, namespace: &str) -> Self {
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            length: watch::Sender::new(0),
        });
        tokio::spawn(send_all(Arc::clone(&queue), address));
        Self {
            queue,
            namespace: namespace.to_owned(),
        }
    }

    /// Queues an event that happens now. `type_url` is the payload's name on the wire.
    pub fn publish(&self, topic: &str, type_url: &str, payload: &impl MessageFull) {
        match envelope(&self.namespace, topic, type_url, payload) {
            Ok(event) => self.forward(event),
            Err(error) => tracing::error!(topic, "Event cannot be encoded: {error}"),
        }
    }

    /// Queues an event as it is.
    pub fn forward(&self, event: Envelope) {
        self.queue.push(event);
    }

    /// Waits until everything was sent, but no longer than `bound`.
    pub async fn flush(&self, bound: Duration) {
        let mut length = self.queue.length.subscribe();
        let empty = length.wait_for(|length| *length == 0);
        if tokio::time::timeout(bound, empty).await.is_err() {
            tracing::warn!("containerd did not take the last events");
        }
    }
}

/// An event of `namespace` that happens now. `type_url` is the payload's name on the wire.
///
/// # Errors
/// When the payload cannot be encoded.
pub fn envelope(
    namespace: &str,
    topic: &str,
    type_url: &str,
    payload: &impl MessageFull,
) -> protobuf::Result<Envelope> {
    Ok(Envelope {
        timestamp: MessageField::some(Timestamp::now()),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(Any {
            type_url: type_url.to_owned(),
            value: payload.write_to_bytes()?,
            ..Any::default()
        }),
        ..Envelope::default()
    })
}

impl Queue {
    fn push(&self, event: Envelope) {
        let mut waiting = self.lock();
        if waiting.len() == CAPACITY {
            tracing::warn!("Too many events wait for containerd; the oldest is lost");
            waiting.pop_front();
        }
        waiting.push_back(event);
        self.length.send_replace(waiting.len());
    }

    fn front(&self) -> Option<Envelope> {
        self.lock().front().cloned()
    }

    /// Removes the event that was sent, unless it was pushed out meanwhile.
    fn sent(&self, event: &Envelope) {
        let mut waiting = self.lock();
        if waiting.front() == Some(event) {
            waiting.pop_front();
        }
        self.length.send_replace(waiting.len());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Envelope>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send_all(queue: Arc<Queue>, address: PathBuf) {
    let mut length = queue.length.subscribe();
    let mut client = None;
    let mut pause = RETRY[0];
    loop {
        let Some(event) = queue.front() else {
            if length.changed().await.is_err() {
                return;
            }
            continue;
        };
        match send(&mut client, &address, event.clone()).await {
            Ok(()) => {}
            Err(RpcError::RpcStatus(status)) => {
                tracing::warn!(
                    topic = event.topic,
                    "containerd refused an event: {}",
                    status.message
                );
            }
            Err(error) => {
                tracing::debug!("containerd cannot be told of an event: {error}");
                client = None;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY[1]);
                continue;
            }
        }
        pause = RETRY[0];
        queue.sent(&event);
    }
}

async fn send(
    client: &mut Option<EventsClient>,
    address: &Path,
    event: Envelope,
) -> ttrpc::Result<()> {
    let client = match client {
        Some(client) => client,
        None => client.insert(connect(address).await?),
    };
    let context = client::context(&event.namespace, FORWARD_BOUND);
    let request = ForwardRequest {
        envelope: MessageField::some(event),
        ..ForwardRequest::default()
    };
    client.forward(context, &request).await.map(drop)
}

async fn connect(address: &Path) -> ttrpc::Result<EventsClient> {
    let client = client::connect(address)
        .await
        .map_err(|e| RpcError::Socket(e.to_string()))?;
    Ok(EventsClient::new(client))
}
