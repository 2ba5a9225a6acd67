//! Events for containerd: a queue that keeps their order and survives a restart of containerd.

mod queue;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fc_proto::containerd::shim::event::Envelope;
use fc_proto::containerd::shim::events::ForwardRequest;
use fc_proto::containerd::shim_async::EventsClient;
use fc_proto::control::{TOPIC_VM_STOP, VMStop};
use fc_proto::protobuf::well_known_types::any::Any;
use fc_proto::protobuf::well_known_types::timestamp::Timestamp;
use fc_proto::protobuf::{self, MessageField, MessageFull};
use fc_proto::ttrpc::Error as RpcError;
use tokio::sync::watch;

use crate::client;
use queue::Queue;

/// How long containerd may take over one event. One that it answers later is sent twice.
const FORWARD_BOUND: Duration = Duration::from_secs(30);
/// Attempts at an event, each over a new connection, when it is not the connection that fails.
const ATTEMPTS: u32 = 3;
/// How long the last events wait for a containerd that is away: one that starts again is there by then.
const AWAY_BOUND: Duration = Duration::from_secs(5);
/// Pauses between attempts to reach a containerd that is away.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// The queue and its sender.
pub struct Events {
    queue: Arc<Queue>,
    namespace: String,
    /// Whether containerd could not be reached when it was last tried.
    away: watch::Receiver<bool>,
}

impl Events {
    /// Sends events to the containerd whose ttrpc socket is at `address`, beginning with the
    /// first event. Events of the VM itself belong to `namespace`.
    pub fn new(address: PathBuf, namespace: &str) -> Self {
        let queue = Arc::new(Queue::new());
        let (set_away, away) = watch::channel(false);
        tokio::spawn(send_all(Arc::clone(&queue), address, set_away));
        Self {
            queue,
            namespace: namespace.to_owned(),
            away,
        }
    }

    /// Queues an event that happens now. `type_url` is the payload's name on the wire.
    pub fn publish(&self, topic: &str, type_url: &str, payload: &impl MessageFull) {
        self.publish_in(&self.namespace, topic, type_url, payload);
    }

    fn publish_in(&self, namespace: &str, topic: &str, type_url: &str, payload: &impl MessageFull) {
        match envelope(namespace, topic, type_url, payload) {
            Ok(event) => self.forward(event),
            Err(error) => tracing::error!(topic, "Event cannot be encoded: {error}"),
        }
    }

    /// Queues the event of a VM's end, in the VM's namespace.
    pub fn vm_stopped(&self, namespace: &str, vm_id: &str) {
        let event = VMStop {
            VMID: vm_id.to_owned(),
            ..VMStop::default()
        };
        self.publish_in(namespace, TOPIC_VM_STOP, "VMStop", &event);
    }

    /// Queues an event as it is. One of more than 1 MiB is lost: it could not be sent.
    pub fn forward(&self, event: Envelope) {
        self.queue.push(event);
    }

    /// What containerd has not taken yet, the oldest first.
    #[must_use]
    pub fn waiting(&self) -> Vec<Envelope> {
        self.queue.all()
    }

    /// Waits until everything was sent, but no longer than `bound`, and no longer than 5 s for a containerd that is not
    /// there. Answers whether it was.
    pub async fn flush(&self, bound: Duration) -> bool {
        let mut length = self.queue.length();
        let mut away = self.away.clone();
        let given_up = async {
            tokio::time::sleep(AWAY_BOUND).await;
            let _ = away.wait_for(|away| *away).await;
        };
        let sent = tokio::select! {
            biased;
            empty = length.wait_for(|length| *length == 0) => empty.is_ok(),
            () = given_up => false,
            () = tokio::time::sleep(bound) => false,
        };
        if !sent {
            tracing::warn!("containerd did not take the last events");
        }
        sent
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

/// Why containerd did not take an event.
#[derive(Debug, thiserror::Error)]
enum SendError {
    /// It is not there, or went away.
    #[error("Cannot reach containerd")]
    Unreachable(#[source] RpcError),
    /// It is there and says nothing.
    #[error("containerd did not answer within {FORWARD_BOUND:?}")]
    Silent,
    /// It refused the event.
    #[error("containerd refused it")]
    Refused(#[source] RpcError),
    /// The event makes no message, or the answer makes no sense; or the connection had ended before, which
    /// the RPC library does not tell apart.
    #[error("The call failed")]
    Call(#[source] RpcError),
}

impl SendError {
    /// What the RPC library or containerd said.
    fn cause(&self) -> Option<String> {
        match self {
            Self::Refused(RpcError::RpcStatus(status)) => Some(status.message.clone()),
            Self::Refused(e) | Self::Call(e) | Self::Unreachable(e) => Some(e.to_string()),
            Self::Silent => None,
        }
    }
}

impl From<RpcError> for SendError {
    fn from(error: RpcError) -> Self {
        match error {
            RpcError::RpcStatus(_) => Self::Refused(error),
            RpcError::Others(_) => Self::Call(error),
            _ => Self::Unreachable(error),
        }
    }
}

async fn send_all(queue: Arc<Queue>, address: PathBuf, away: watch::Sender<bool>) {
    let mut length = queue.length();
    let mut client = None;
    let mut pause = RETRY[0];
    let mut failed = 0;
    loop {
        let Some(event) = queue.front() else {
            if length.changed().await.is_err() {
                return;
            }
            continue;
        };
        let sent = send(&mut client, &address, event.clone()).await;
        away.send_replace(client.is_none());
        if let Err(error) = sent {
            failed += u32::from(matches!(error, SendError::Call(_)));
            // One event must not keep all others back.
            if !matches!(error, SendError::Refused(_)) && failed < ATTEMPTS {
                tracing::debug!(cause = error.cause(), "An event has to wait: {error}");
                client = None;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY[1]);
                continue;
            }
            let topic = event.topic.as_str();
            tracing::warn!(topic, cause = error.cause(), "An event is lost: {error}");
        }
        (pause, failed) = (RETRY[0], 0);
        queue.done(&event);
    }
}

async fn send(
    client: &mut Option<EventsClient>,
    address: &Path,
    event: Envelope,
) -> Result<(), SendError> {
    let client = match client {
        Some(client) => client,
        None => client.insert(connect(address).await?),
    };
    // Without a bound of its own, which would look like any other failure of the call.
    let context = client::context(&event.namespace, Duration::ZERO);
    let request = ForwardRequest {
        envelope: MessageField::some(event),
        ..ForwardRequest::default()
    };
    let answer = tokio::time::timeout(FORWARD_BOUND, client.forward(context, &request));
    answer.await.map_err(|_| SendError::Silent)??;
    Ok(())
}

async fn connect(address: &Path) -> Result<EventsClient, RpcError> {
    let client = client::connect(address)
        .await
        .map_err(|e| RpcError::Socket(e.to_string()))?;
    Ok(EventsClient::new(client))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::protobuf::Message;
    use fc_proto::ttrpc;
    use std::io;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};

    /// Reads a request of ttrpc: its stream's id and the topic of the event in it.
    async fn try_read(stream: &mut UnixStream) -> io::Result<(u32, String)> {
        let length = stream.read_u32().await?;
        let id = stream.read_u32().await?;
        stream.read_u16().await?;
        let mut body = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut body).await?;
        let request = ttrpc::Request::parse_from_bytes(&body)?;
        let request = ForwardRequest::parse_from_bytes(&request.payload)?;
        Ok((id, request.envelope.unwrap().topic))
    }

    async fn read(stream: &mut UnixStream) -> (u32, String) {
        try_read(stream).await.unwrap()
    }

    async fn answer(stream: &mut UnixStream, id: u32, body: &[u8]) {
        let mut message = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
        message.extend(id.to_be_bytes());
        message.extend([2, 0]);
        message.extend(body);
        stream.write_all(&message).await.unwrap();
    }

    fn event(topic: &str, length: usize) -> Envelope {
        Envelope {
            topic: topic.to_owned(),
            event: MessageField::some(Any {
                value: vec![0; length],
                ..Any::default()
            }),
            ..Envelope::default()
        }
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_sent_keeps_no_other_back() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("containerd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let events = Events::new(socket, "ns");
        events.forward(event("/too/long", 5 << 20));
        events.forward(event("/not/understood", 0));
        events.forward(event("/good", 0));

        for _ in 0..ATTEMPTS {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (id, topic) = read(&mut stream).await;
            assert_eq!(topic, "/not/understood");
            // No message at all: the call fails, although the connection is good.
            answer(&mut stream, id, &[0xff]).await;
            if let Ok((id, topic)) = try_read(&mut stream).await {
                assert_eq!(topic, "/good");
                answer(&mut stream, id, &[]).await;
            }
        }
        let mut length = events.queue.length();
        let empty = length.wait_for(|length| *length == 0);
        let empty = tokio::time::timeout(Duration::from_secs(60), empty).await;
        empty.expect("an event keeps others back").unwrap();
    }

    #[tokio::test]
    async fn an_event_is_kept_while_containerd_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("containerd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let events = Events::new(socket, "ns");
        events.forward(event("/kept", 0));
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(read(&mut stream).await.1, "/kept");
        drop(stream);
        let (mut stream, _) = listener.accept().await.unwrap();
        assert_eq!(read(&mut stream).await.1, "/kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_containerd_is_waited_for_longer_than_one_that_is_away() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("containerd.sock");
        let bound = AWAY_BOUND * 3;
        let waited = async |address: PathBuf| {
            let events = Events::new(address, "ns");
            events.forward(event("/last", 0));
            let begin = tokio::time::Instant::now();
            assert!(!events.flush(bound).await);
            begin.elapsed()
        };
        let away = waited(socket.clone()).await;
        assert!(away >= AWAY_BOUND && away < bound, "{away:?}");
        // It takes connections and answers nothing.
        let _listener = UnixListener::bind(&socket).unwrap();
        let silent = waited(socket).await;
        assert!(silent >= bound, "{silent:?}");
    }

    #[tokio::test]
    async fn events_go_on_after_containerd_was_started_again() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("containerd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let events = Events::new(socket, "ns");
        let mut length = events.queue.length();
        for topic in ["/before", "/after", "/at/last"] {
            events.forward(event(topic, 0));
            let (mut stream, _) = listener.accept().await.unwrap();
            let (id, read) = read(&mut stream).await;
            assert_eq!(read, topic);
            answer(&mut stream, id, &[]).await;
            length.wait_for(|length| *length == 0).await.unwrap();
            drop(stream);
            // The client hears of it now or with the next event; nothing may be lost either way.
            tokio::task::yield_now().await;
        }
    }
}
