//! One connection to an agent.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fc_proto::guest::{self, AgentClient, ConfigureRequest, ConfigureResponse};
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::asynchronous::transport::Socket;
use fc_proto::ttrpc::context::{Context, with_duration};
use fc_proto::ttrpc::{Code, Error as RpcError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::announcement::check_protocol;
use super::words::heard;
use super::{GuestError, NAMESPACE_KEY};
use crate::timeline::now_ns;

/// Longest host name that Linux takes.
const HOSTNAME_MAX: usize = 63;
/// Bytes of randomness that a guest gets from the host.
const SEED: usize = 64;

/// A connection, made and not yet used. Clones are the same one.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) client: Client,
    socket: Arc<std::os::unix::net::UnixStream>,
}

impl Link {
    /// Connects to the agent, which is known to listen.
    pub(super) async fn connect(vsock: &Path, deadline: Instant) -> Result<Self, GuestError> {
        Self::on(fc_vsock::connect(vsock, guest::CONTROL_PORT, deadline).await?)
    }

    /// Tries to connect until an agent listens.
    pub(super) async fn poll(vsock: &Path, deadline: Instant) -> Result<Self, GuestError> {
        Self::on(fc_vsock::connect_retry(vsock, guest::CONTROL_PORT, deadline).await?)
    }

    fn on(stream: UnixStream) -> Result<Self, GuestError> {
        let stream = stream.into_std().map_err(GuestError::Host)?;
        let socket = stream.try_clone().map_err(GuestError::Host)?;
        let stream = UnixStream::from_std(stream).map_err(GuestError::Host)?;
        Ok(Self {
            client: Client::new(Socket::new(stream)),
            socket: Arc::new(socket),
        })
    }

    /// Gives the VM its identity and learns what the agent can do; `None` from an agent
    /// without the call, an old one, which never announces itself. An agent that hesitates is given up at `deadline`.
    pub(super) async fn configure(
        &self,
        namespace: &str,
        vm_id: &str,
        announced: bool,
        deadline: Instant,
    ) -> Result<Option<Configured>, GuestError> {
        let mut random_seed = vec![0; SEED];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut f| f.read_exact(&mut random_seed))
            .map_err(GuestError::Host)?;
        let request = ConfigureRequest {
            vm_id: vm_id.to_owned(),
            hostname: vm_id[..vm_id.len().min(HOSTNAME_MAX)].to_owned(),
            unix_time_ns: i64::try_from(now_ns()).unwrap_or_default(),
            random_seed,
            ..ConfigureRequest::default()
        };
        let sent = now_ns();
        let bound = deadline.saturating_duration_since(Instant::now());
        let answer = self.send(namespace, &request, bound).await;
        let response = match answer {
            Ok(response) => response,
            Err(RpcError::RpcStatus(status)) if !announced && is_unknown_call(status.code()) => {
                return Ok(None);
            }
            Err(source) => {
                return Err(GuestError::Call {
                    call: "Configure",
                    source,
                });
            }
        };
        let answered_ns = sent.midpoint(now_ns());
        check_protocol(response.protocol, &response.agent_version)?;
        Ok(Some(Configured {
            response,
            answered_ns,
        }))
    }

    /// Configures the agent.
    pub(super) async fn send(
        &self,
        namespace: &str,
        request: &ConfigureRequest,
        bound: Duration,
    ) -> Result<ConfigureResponse, RpcError> {
        let context = in_namespace(with_duration(bound), namespace);
        AgentClient::new(self.client.clone())
            .configure(context, request)
            .await
            .map_err(heard)
    }

    /// Waits until the connection is over.
    pub(super) async fn closed(&self) -> std::io::Result<()> {
        let socket = OwnedFd::from(self.socket.try_clone()?);
        // SAFETY: an owned descriptor stays open and the same until `AsyncFd` drops it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        loop {
            // Wakes for every message too, which is the client's to read.
            let mut ready = socket.readable().await?;
            if ready.ready().is_read_closed() {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// Ends the connection: calls under way fail, and so does every later one.
    pub(super) fn close(&self) {
        // Fails only when the guest was quicker.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// What an agent answers to a Configure.
pub(super) struct Configured {
    pub(super) response: ConfigureResponse,
    /// The host's time, in nanoseconds since 1970, at which the agent looked at its clock.
    pub(super) answered_ns: u64,
}

/// `context` with the namespace that the call is for.
pub(super) fn in_namespace(mut context: Context, namespace: &str) -> Context {
    context.set(NAMESPACE_KEY.to_owned(), vec![namespace.to_owned()]);
    context
}

/// What servers answer to a service they do not have: Go's says Unimplemented, Rust's InvalidArgument.
fn is_unknown_call(code: Code) -> bool {
    matches!(
        code,
        Code::UNIMPLEMENTED | Code::NOT_FOUND | Code::INVALID_ARGUMENT
    )
}

/// Whether a call has no answer because its connection was closed: before the answer began, or in the middle of it.
pub(super) fn is_closed(error: &RpcError) -> bool {
    matches!(
        error,
        RpcError::RemoteClosed | RpcError::LocalClosed | RpcError::Eof | RpcError::Socket(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_proto::task::TaskClient;
    use fc_proto::task::api::ShutdownRequest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What comes of a call whose other end says `words` and closes the connection.
    async fn answered_with(words: &'static [u8]) -> RpcError {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let link = Link::on(ours).unwrap();
        tokio::spawn(async move {
            theirs.read_u8().await.unwrap();
            theirs.write_all(words).await.unwrap();
        });
        let tasks = TaskClient::new(link.client.clone());
        let context = with_duration(Duration::from_secs(60));
        let answer = tasks.shutdown(context, &ShutdownRequest::default()).await;
        answer.unwrap_err()
    }

    #[tokio::test]
    async fn a_closed_connection_is_known_for_one() {
        // Nothing, a part of a message's header, and a header without its message.
        for words in [&b""[..], &[0, 0, 0], &[0, 0, 0, 9, 0, 0, 0, 1, 2, 0]] {
            let error = answered_with(words).await;
            assert!(is_closed(&error), "{words:?}: {error:?}");
        }
        assert!(!is_closed(&RpcError::Others("anything else".to_owned())));
    }
}
