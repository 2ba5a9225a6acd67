//! Puts everything together and serves until the machine is to end.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fc_errors::chain;
use fc_proto::guest::{BUNDLE_ROOT, create_agent, create_drive_mounter, create_io_proxy};
use fc_proto::task::create_task;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::{Listener, Socket};

use crate::announce::announce;
use crate::args::Args;
use crate::configure::{VERSION, boottime_ns};
use crate::drives::{DriveError, DriveService, Drives};
use crate::events::{self, Events};
use crate::export::Exporter;
use crate::machine::{Role, Shutdown};
use crate::oci::{Runtime, RuntimeError};
use crate::own::AgentService;
use crate::reaper::Reaper;
use crate::say;
use crate::task::{Env, IoService, TaskService, Tasks};
use crate::tracker::{Tracker, Underway};
use crate::transport::Transport;
use crate::uevent::Uevents;

/// Directory of the agent's own files in a VM.
pub(crate) const STATE_DIR: &str = "/run/firecracker-agent";
/// After Shutdown's answer, bound on the host's closing of the control connection.
const GOODBYE_BOUND: Duration = Duration::from_millis(500);

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory of its own.
    #[error("Cannot make directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Signals.
    #[error("Cannot receive signals")]
    Signals(#[source] io::Error),
    /// Device events.
    #[error("Cannot listen for device events")]
    Uevents(#[source] io::Error),
    /// Drives.
    #[error(transparent)]
    Drives(#[from] DriveError),
    /// The OCI runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The control port.
    #[error("Cannot listen on control port {port}")]
    Listen {
        /// Which.
        port: u32,
        /// Why.
        #[source]
        source: ttrpc::Error,
    },
}

/// Serves until the machine is to end. `marks` are moments of the boot until now. An error has
/// been announced to the host.
///
/// # Errors
/// When the agent cannot serve.
pub async fn run(
    args: &Args,
    role: Role,
    marks: Vec<(&'static str, u64)>,
) -> Result<(), StartError> {
    let transport = match &args.test_dir {
        Some(dir) => Transport::UnixDir(dir.clone()),
        None => Transport::Vsock,
    };
    let result = serve(args, role, marks, &transport).await;
    if let Err(error) = &result {
        announce(&transport, Some(chain(error))).await;
    }
    result
}

/// Announces `error`, which kept the machine from being set up, without serving.
pub async fn announce_failure(error: String) {
    announce(&Transport::Vsock, Some(error)).await;
}

async fn serve(
    args: &Args,
    role: Role,
    mut marks: Vec<(&'static str, u64)>,
    transport: &Transport,
) -> Result<(), StartError> {
    let reaper = Reaper::start().map_err(StartError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let (state, bundles) = match &args.test_dir {
        Some(dir) => (dir.join("state"), dir.join("container")),
        None => (PathBuf::from(STATE_DIR), PathBuf::from(BUNDLE_ROOT)),
    };
    make_dir(&state)?;
    make_dir(&bundles)?;
    let uevents = Uevents::start().map_err(StartError::Uevents)?;
    let drives = Arc::new(Drives::discover(uevents, bundles.clone(), role)?);
    let runtime = Runtime::new(
        args.runtime.clone(),
        args.runtime_args.clone(),
        &state,
        reaper.clone(),
    )?;
    let events = Events::default();
    let streams = Tracker::default();
    let tasks = Arc::new(Tasks::new(Env {
        transport: transport.clone(),
        reaper,
        runtime,
        events: events.clone(),
        streams: streams.clone(),
        bundles: bundles.clone(),
        cgroup_parent: args.cgroup_parent.clone(),
    }));
    let shutdown = Shutdown::new(role, streams);
    let connections = Tracker::default();

    let address = transport.ttrpc_address(args.port);
    let listen_error = |source| StartError::Listen {
        port: args.port,
        source,
    };
    let listener = Listener::bind(&address)
        .map_err(|error| listen_error(ttrpc::Error::Others(error.to_string())))?;
    marks.push(("ready", boottime_ns()));
    let task_service = TaskService::new(Arc::clone(&tasks), shutdown.clone());
    let agent_service = AgentService {
        role,
        marks,
        events: events.clone(),
        tasks: Arc::clone(&tasks),
        exporter: Arc::new(Exporter::new(transport.clone(), bundles)),
    };
    let mut server = Server::new()
        .add_listener(counted(listener, connections.clone()))
        .register_service(create_task(Arc::new(task_service)))
        .register_service(create_io_proxy(Arc::new(IoService::new(tasks.clone()))))
        .register_service(create_drive_mounter(Arc::new(DriveService::new(drives))))
        .register_service(events::service(events))
        .register_service(create_agent(Arc::new(agent_service)));
    server.start().await.map_err(listen_error)?;
    say!("Version {VERSION} serves on port {}", args.port);
    announce(transport, None).await;

    tokio::select! {
        () = shutdown.done() => {}
        _ = terminate.recv() => shutdown.run(&tasks).await,
        _ = interrupt.recv() => shutdown.run(&tasks).await,
    }
    server.stop_listen().await;
    // Our last answer is on its way; who has it closes the connection.
    let _ = timeout(GOODBYE_BOUND, connections.idle()).await;
    Ok(())
}

fn make_dir(path: &Path) -> Result<(), StartError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StartError::Directory {
            path: path.to_owned(),
            source,
        })
}

/// `listener`, with its connections counted while they are open.
fn counted(listener: Listener, tracker: Tracker) -> Listener {
    Listener::new(listener.map(move |accepted| {
        accepted.map(|socket| Counted {
            socket,
            _underway: tracker.enter(),
        })
    }))
}

struct Counted {
    socket: Socket,
    _underway: Underway,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
