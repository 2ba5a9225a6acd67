//! The agent in the guest: how the host learns that it is there, and the connection to it, which
//! is made again when it breaks.

mod announcement;
mod keeper;
mod link;
mod words;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use fc_client::text::excerpt;
use fc_proto::guest::{
    AgentClient, ConfigureRequest, ConfigureResponse, DriveMounterClient, PROTOCOL,
};
use fc_proto::task::TaskClient;
use fc_proto::task::api::ShutdownRequest;
use fc_proto::ttrpc::Error as RpcError;
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::context::{Context, with_duration};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(super) use announcement::announcement;
use link::{Link, in_namespace, is_closed};
pub(super) use words::heard;

use super::VmDir;
use crate::timeline::{Timeline, now_ns};

/// Metadata key under which containerd's namespace travels in ttrpc calls.
pub const NAMESPACE_KEY: &str = "containerd-namespace-ttrpc";
/// Bound on setting the clock of a VM that was paused: who resumes it waits for that.
const CLOCK_BOUND: Duration = Duration::from_secs(10);

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
    /// The connection broke and could not be made again.
    #[error(
        "The connection to the agent in the guest broke and could not be made again within {0:?}"
    )]
    Lost(Duration),
    /// The host gave no randomness, or the connection cannot be set up.
    #[error("Cannot prepare the connection to the agent in the guest")]
    Host(#[source] std::io::Error),
}

/// How the connection to an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// It works; the number grows with each new one, from 1.
    Up(u64),
    /// It broke, and is being made again.
    Lost,
    /// There will be none any more: the VM was stopped, its VMM ended, or the agent did not come back.
    Gone,
}

/// An agent and the connection to it. Clones are the same.
///
/// A connection that breaks is made again as long as the VMM lives, and the agent configured again. So
/// clients are asked for anew for each call. A call that was under way when the connection broke fails; whether
/// it had an effect is then not known.
#[derive(Clone)]
pub struct Guest {
    inner: Arc<Inner>,
}

struct Inner {
    vsock: PathBuf,
    namespace: String,
    vm_id: String,
    link: Mutex<Link>,
    /// What the first Configure told; `None` of an agent of the original.
    agent: OnceLock<Option<Agent>>,
    connection: watch::Sender<Connection>,
    /// Whether the connection was given up on purpose.
    closing: AtomicBool,
}

/// What is known of an agent.
struct Agent {
    version: String,
    /// What it can do beyond the original's ([`fc_proto::guest::feature`]).
    features: HashSet<String>,
}

impl Guest {
    /// Connects to the agent, which is known to listen.
    pub(super) async fn connect(
        dir: &VmDir,
        vsock: &Path,
        deadline: Instant,
    ) -> Result<Self, GuestError> {
        Ok(Self::on(dir, vsock, Link::connect(vsock, deadline).await?))
    }

    /// Tries to connect until an agent listens.
    pub(super) async fn poll(
        dir: &VmDir,
        vsock: &Path,
        deadline: Instant,
    ) -> Result<Self, GuestError> {
        Ok(Self::on(dir, vsock, Link::poll(vsock, deadline).await?))
    }

    fn on(dir: &VmDir, vsock: &Path, link: Link) -> Self {
        Self {
            inner: Arc::new(Inner {
                vsock: vsock.to_owned(),
                namespace: dir.namespace().to_owned(),
                vm_id: dir.vm_id().to_owned(),
                link: Mutex::new(link),
                agent: OnceLock::new(),
                connection: watch::Sender::new(Connection::Up(1)),
                closing: AtomicBool::new(false),
            }),
        }
    }

    /// Gives the VM its identity and learns what the agent can do, by `deadline`.
    pub(super) async fn configure(
        &self,
        announced: bool,
        deadline: Instant,
        timeline: &Timeline,
    ) -> Result<(), GuestError> {
        let inner = &self.inner;
        let link = self.link();
        let configured = link
            .configure(&inner.namespace, &inner.vm_id, announced, deadline)
            .await?;
        if let Some(configured) = &configured {
            record_marks(&configured.response, configured.answered_ns, timeline);
        }
        // Later answers come from the same agent, or from a guest that is not to be believed.
        inner.agent.get_or_init(|| {
            configured.map(|configured| Agent {
                version: excerpt(&configured.response.agent_version),
                features: configured.response.features.into_iter().collect(),
            })
        });
        Ok(())
    }

    /// Follows the connection, in a task that ends with the VMM or when the answer is aborted.
    pub(super) fn keep(&self, vmm_ended: impl Future + Send + 'static) -> JoinHandle<()> {
        tokio::spawn(keeper::keep(self.clone(), vmm_ended))
    }

    /// A new connection, configured.
    async fn dial(&self, deadline: Instant) -> Result<Link, GuestError> {
        let inner = &self.inner;
        let link = Link::connect(&inner.vsock, deadline).await?;
        if self.version().is_some() {
            link.configure(&inner.namespace, &inner.vm_id, true, deadline)
                .await?;
        }
        Ok(link)
    }

    /// Sets the guest's clock to the host's. An agent of the original has no call for it.
    pub(super) async fn set_clock(&self) -> Result<(), GuestError> {
        if self.version().is_none() {
            return Ok(());
        }
        let inner = &self.inner;
        let request = ConfigureRequest {
            vm_id: inner.vm_id.clone(),
            unix_time_ns: i64::try_from(now_ns()).unwrap_or_default(),
            ..ConfigureRequest::default()
        };
        let answer = self
            .link()
            .send(&inner.namespace, &request, CLOCK_BOUND)
            .await;
        answer.map(drop).map_err(|source| GuestError::Call {
            call: "Configure",
            source,
        })
    }

    /// The task service.
    #[must_use]
    pub fn tasks(&self) -> TaskClient {
        TaskClient::new(self.client())
    }

    /// The drive mounter.
    #[must_use]
    pub fn drive_mounter(&self) -> DriveMounterClient {
        DriveMounterClient::new(self.client())
    }

    /// Our own service; only agents with a [`Guest::version`] have it.
    #[must_use]
    pub fn agent(&self) -> AgentClient {
        AgentClient::new(self.client())
    }

    /// The present connection, for any other call. While it is broken, calls fail: [`Guest::connected`]
    /// waits for the next one.
    #[must_use]
    pub fn client(&self) -> Client {
        self.link().client
    }

    /// How the connection is, to be followed.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.inner.connection.subscribe()
    }

    /// Waits until the connection works, or will not any more; answers whether it does.
    pub async fn connected(&self) -> bool {
        let mut connection = self.connection();
        let settled = connection.wait_for(|c| *c != Connection::Lost).await;
        settled.is_ok_and(|connection| *connection != Connection::Gone)
    }

    /// Breaks the connection. It is made again, as after any other break.
    pub fn break_connection(&self) {
        // Known at once, so that nobody uses it any more.
        self.set_connection(Connection::Lost);
        self.link().close();
    }

    /// Whether the agent has a feature of [`fc_proto::guest::feature`].
    #[must_use]
    pub fn has(&self, feature: &str) -> bool {
        let agent = self.known_agent();
        agent.is_some_and(|agent| agent.features.contains(feature))
    }

    /// The agent's version; `None` for an agent of the original.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.known_agent().map(|agent| agent.version.as_str())
    }

    /// Context of a call without a bound, in the VM's namespace.
    #[must_use]
    pub fn context(&self) -> Context {
        in_namespace(Context::default(), &self.inner.namespace)
    }

    /// Context of a call that ends after `bound`.
    #[must_use]
    pub fn bounded(&self, bound: Duration) -> Context {
        in_namespace(with_duration(bound), &self.inner.namespace)
    }

    /// Asks the agent to end the VM, then closes the connection, which makes it do so at once.
    pub(super) async fn shut_down(&self, bound: Duration) -> Result<(), GuestError> {
        let request = ShutdownRequest {
            id: self.inner.vm_id.clone(),
            now: true,
            ..ShutdownRequest::default()
        };
        self.connected().await;
        self.inner.closing.store(true, Ordering::Relaxed);
        let result = self.tasks().shutdown(self.bounded(bound), &request).await;
        self.link().close();
        match result {
            // A guest that is quick has closed the connection before its answer.
            Ok(_) => Ok(()),
            Err(error) if is_closed(&error) => Ok(()),
            Err(source) => Err(GuestError::Call {
                call: "Shutdown",
                source: heard(source),
            }),
        }
    }

    fn known_agent(&self) -> Option<&Agent> {
        self.inner.agent.get()?.as_ref()
    }

    fn is_closing(&self) -> bool {
        self.inner.closing.load(Ordering::Relaxed)
    }

    fn link(&self) -> Link {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        // It is only ever replaced as a whole.
        self.inner
            .link
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes over to a new connection.
    fn replace(&self, link: Link, number: u64) {
        *self.lock() = link;
        tracing::info!("The connection to the agent works again");
        self.set_connection(Connection::Up(number));
    }

    fn set_connection(&self, connection: Connection) {
        self.inner.connection.send_replace(connection);
    }
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
