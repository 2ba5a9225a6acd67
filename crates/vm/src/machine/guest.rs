//! The agent in the guest: how the host learns that it is there, and the connection to it.

use std::collections::HashSet;
use std::io::Read;
use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;

use fc_proto::guest::{
    self, AgentClient, Announcement, ConfigureRequest, ConfigureResponse, DriveMounterClient,
    PROTOCOL,
};
use fc_proto::task::TaskClient;
use fc_proto::task::api::ShutdownRequest;
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::asynchronous::transport::Socket;
use fc_proto::ttrpc::context::{Context, with_duration};
use fc_proto::ttrpc::{Code, Error as RpcError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::timeline::{Timeline, now_ns};

pub use fc_proto::NAMESPACE_KEY;

/// How long an agent may hesitate over an announcement or a Configure.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// Bound on setting the clock of a VM that was paused: who resumes it waits for that.
const CLOCK_BOUND: Duration = Duration::from_secs(2);
/// Longest host name that Linux takes.
const HOSTNAME_MAX: usize = 63;
/// Bytes of randomness that a guest gets from the host.
const SEED: usize = 64;

/// Why the agent cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// It announced that it cannot serve.
    #[error("The agent in the guest cannot serve: {0}")]
    Agent(String),
    /// It speaks another version of the guest protocol.
    #[error(
        "The agent in the guest ({agent_version}) speaks protocol {theirs}, this shim speaks {PROTOCOL}: rebuild the root image with this version's firecracker-image"
    )]
    Protocol {
        /// The agent's protocol.
        theirs: u32,
        /// The agent's version.
        agent_version: String,
    },
    /// What arrived on the announcement port is no announcement.
    #[error("The guest announced itself with something unreadable")]
    Announcement(#[source] std::io::Error),
    /// The guest does not take connections to the agent.
    #[error("Cannot connect to the agent in the guest")]
    Connect(#[from] fc_vsock::ConnectError),
    /// The connection was made but a call failed.
    #[error("The agent in the guest failed to answer {call}")]
    Call {
        /// Name of the call.
        call: &'static str,
        /// The agent's status, or what happened to the connection.
        source: RpcError,
    },
    /// The host gave no randomness, or the connection cannot be set up.
    #[error("Cannot prepare the connection to the agent in the guest")]
    Host(#[source] std::io::Error),
}

/// A connection to an agent, and what is known about it.
pub struct Guest {
    client: Client,
    socket: std::os::unix::net::UnixStream,
    namespace: String,
    /// What the agent can do beyond the original's ([`fc_proto::guest::feature`]); empty for old agents.
    features: HashSet<String>,
    /// The agent's version; `None` for old agents.
    version: Option<String>,
}

impl Guest {
    /// Connects to the agent, which is known to listen.
    pub(super) async fn connect(
        vsock: &Path,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Self, GuestError> {
        let stream = fc_vsock::connect(vsock, guest::CONTROL_PORT, deadline).await?;
        Self::on(stream, namespace)
    }

    /// Tries to connect until an agent listens.
    pub(super) async fn poll(
        vsock: &Path,
        namespace: &str,
        deadline: Instant,
    ) -> Result<Self, GuestError> {
        let stream = fc_vsock::connect_retry(vsock, guest::CONTROL_PORT, deadline).await?;
        Self::on(stream, namespace)
    }

    fn on(stream: UnixStream, namespace: &str) -> Result<Self, GuestError> {
        let stream = stream.into_std().map_err(GuestError::Host)?;
        let socket = stream.try_clone().map_err(GuestError::Host)?;
        let stream = UnixStream::from_std(stream).map_err(GuestError::Host)?;
        Ok(Self {
            client: Client::new(Socket::new(stream)),
            socket,
            namespace: namespace.to_owned(),
            features: HashSet::new(),
            version: None,
        })
    }

    /// Gives the VM its identity and learns what the agent can do. An agent
    /// without the call is an old one and stays without features.
    pub(super) async fn configure(
        &mut self,
        vm_id: &str,
        announced: bool,
        timeline: &Timeline,
    ) -> Result<(), GuestError> {
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
        let agent = AgentClient::new(self.client.clone());
        let response = match agent.configure(self.bounded(ANSWER_BOUND), &request).await {
            Ok(response) => response,
            Err(RpcError::RpcStatus(status)) if !announced && is_unknown_call(status.code()) => {
                return Ok(());
            }
            Err(source) => {
                return Err(GuestError::Call {
                    call: "Configure",
                    source,
                });
            }
        };
        record_marks(&response, sent.midpoint(now_ns()), timeline);
        check_protocol(response.protocol, &response.agent_version)?;
        self.features = response.features.into_iter().collect();
        self.version = Some(response.agent_version);
        Ok(())
    }

    /// Sets the guest's clock to the host's. An agent of the original has no call for it.
    pub(super) async fn set_clock(&self, vm_id: &str) -> Result<(), GuestError> {
        if self.version.is_none() {
            return Ok(());
        }
        let request = ConfigureRequest {
            vm_id: vm_id.to_owned(),
            unix_time_ns: i64::try_from(now_ns()).unwrap_or_default(),
            ..ConfigureRequest::default()
        };
        let agent = AgentClient::new(self.client.clone());
        match agent.configure(self.bounded(CLOCK_BOUND), &request).await {
            Ok(_) => Ok(()),
            Err(source) => Err(GuestError::Call {
                call: "Configure",
                source,
            }),
        }
    }

    /// The task service.
    #[must_use]
    pub fn tasks(&self) -> TaskClient {
        TaskClient::new(self.client.clone())
    }

    /// The drive mounter.
    #[must_use]
    pub fn drive_mounter(&self) -> DriveMounterClient {
        DriveMounterClient::new(self.client.clone())
    }

    /// The connection, for any other call.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether the agent has a feature of [`fc_proto::guest::feature`].
    #[must_use]
    pub fn has(&self, feature: &str) -> bool {
        self.features.contains(feature)
    }

    /// The agent's version; `None` for an agent of the original.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Context of a call without a bound, in the VM's namespace.
    #[must_use]
    pub fn context(&self) -> Context {
        self.with_namespace(Context::default())
    }

    /// Context of a call that ends after `bound`.
    #[must_use]
    pub fn bounded(&self, bound: Duration) -> Context {
        self.with_namespace(with_duration(bound))
    }

    fn with_namespace(&self, mut context: Context) -> Context {
        context.set(NAMESPACE_KEY.to_owned(), vec![self.namespace.clone()]);
        context
    }

    /// Asks the agent to end the VM, then closes the connection, which makes it do so at once.
    pub(super) async fn shut_down(&self, vm_id: &str, bound: Duration) -> Result<(), GuestError> {
        let request = ShutdownRequest {
            id: vm_id.to_owned(),
            now: true,
            ..ShutdownRequest::default()
        };
        let result = self.tasks().shutdown(self.bounded(bound), &request).await;
        self.disconnect();
        match result {
            // A guest that is quick has closed the connection before its answer.
            Ok(_) | Err(RpcError::RemoteClosed | RpcError::LocalClosed | RpcError::Eof) => Ok(()),
            Err(source) => Err(GuestError::Call {
                call: "Shutdown",
                source,
            }),
        }
    }

    /// Ends the connection: calls under way fail, and so does every later one.
    pub fn disconnect(&self) {
        // Fails only when the guest was quicker.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Waits for the agent's announcement and reads it.
pub(super) async fn announcement(listener: &fc_vsock::Listener) -> Result<(), GuestError> {
    let read = async {
        let stream = listener.accept().await?;
        let mut line = Vec::new();
        let limit = u64::try_from(Announcement::MAX_BYTES).unwrap_or(u64::MAX);
        let mut stream = BufReader::new(stream.take(limit));
        // Its line's end is the announcement's: Firecracker hides from us that the guest ended its
        // direction alone.
        match tokio::time::timeout(ANSWER_BOUND, stream.read_until(b'\n', &mut line)).await {
            Ok(done) => done?,
            Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
        };
        serde_json::from_slice::<Announcement>(&line).map_err(std::io::Error::from)
    };
    let announcement = read.await.map_err(GuestError::Announcement)?;
    check_protocol(announcement.protocol, &announcement.agent_version)?;
    match announcement.error {
        Some(error) => Err(GuestError::Agent(printable(&error))),
        None => Ok(()),
    }
}

fn check_protocol(theirs: u32, agent_version: &str) -> Result<(), GuestError> {
    if theirs == PROTOCOL {
        return Ok(());
    }
    Err(GuestError::Protocol {
        theirs,
        agent_version: printable(agent_version),
    })
}

/// Text of the guest, fit for a host's terminal and log.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// What servers answer to a service they do not have: Go's says Unimplemented, Rust's InvalidArgument.
fn is_unknown_call(code: Code) -> bool {
    matches!(
        code,
        Code::UNIMPLEMENTED | Code::NOT_FOUND | Code::INVALID_ARGUMENT
    )
}

/// Puts the guest's boot marks into the timeline, in host time.
fn record_marks(response: &ConfigureResponse, answered_ns: u64, timeline: &Timeline) {
    for mark in &response.marks {
        let Some(ago) = response.boottime_ns.checked_sub(mark.boottime_ns) else {
            continue;
        };
        let Some(at) = answered_ns.checked_sub(ago) else {
            continue;
        };
        match mark.name.as_str() {
            "init" => timeline.at(at, "", "guest_init"),
            "agent" => timeline.at(at, "", "guest_agent"),
            "ready" => timeline.at(at, "", "guest_ready"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    async fn announce(line: &str) -> Result<(), GuestError> {
        let dir = tempfile::tempdir().unwrap();
        let vsock = dir.path().join("v");
        let listener = fc_vsock::Listener::bind(&vsock, guest::ANNOUNCE_PORT).unwrap();
        let mut stream = fc_vsock::unix::connect(listener.path()).await.unwrap();
        // Both at once: a long line fits no socket's buffer. The host may stop reading it.
        let write = async {
            let _ = stream.write_all(line.as_bytes()).await;
            // Like the agent: it keeps the connection until the host closes it.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        tokio::join!(write, announcement(&listener)).1
    }

    #[tokio::test]
    async fn announcements() {
        announce(&format!(
            "{{\"protocol\":{PROTOCOL},\"agent_version\":\"1\"}}\n"
        ))
        .await
        .unwrap();
        assert!(matches!(
            announce("{\"protocol\":99,\"agent_version\":\"9.9\\u001b\"}\n").await,
            Err(GuestError::Protocol { theirs: 99, agent_version }) if agent_version == "9.9 "
        ));
        assert!(matches!(
            announce(&format!(
                "{{\"protocol\":{PROTOCOL},\"agent_version\":\"1\",\"error\":\"no cgroups\"}}\n"
            ))
            .await,
            Err(GuestError::Agent(why)) if why == "no cgroups"
        ));
        let long = "x".repeat(1 << 20);
        assert!(matches!(
            announce(&long).await,
            Err(GuestError::Announcement(_))
        ));
    }
}
