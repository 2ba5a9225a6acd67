//! The shim of one VM: the task and control APIs on inherited sockets, for as long as the VM lives.

mod control;
mod create;
mod delete;
mod drives;
mod error;
mod exec;
mod files;
mod guest_events;
mod inherited;
mod io;
mod life;
mod link;
mod log;
mod process;
mod service;
mod shim;
mod signals;
mod stop;
mod tasks;
mod vm_service;
mod write_back;

use std::sync::Arc;
use std::time::Instant;

use fc_client::Tail;
use fc_config::Config;
use fc_proto::ttrpc::asynchronous::Server;
use fc_proto::ttrpc::asynchronous::transport::Listener;
use fc_rpc::incoming::{Connections, Incoming};
use fc_vm::machine::{Span, WaitsFor};
use fc_vm::timeline::now_ns;

use crate::args::Args;
use inherited::{Inherited, InheritedError};
use shim::Shim;

/// Why the shim could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// What a launcher passes on is not there.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// The runtime's configuration.
    #[error(transparent)]
    Config(#[from] fc_config::ConfigError),
    /// The async runtime, a socket or a signal handler.
    #[error("Cannot set up the shim")]
    Setup(#[from] std::io::Error),
    /// A ttrpc server.
    #[error("Cannot serve the shim's APIs")]
    Server(#[from] fc_proto::ttrpc::Error),
}

/// Serves until the VM is gone.
///
/// # Errors
/// See [`ServeError`]; the launcher sees them only in the shim's log.
pub fn run(args: &Args) -> Result<(), ServeError> {
    let begin = (now_ns(), Instant::now());
    let inherited = Inherited::take(args)?;
    let loaded = Config::load();
    let debug = args.debug;
    let level = loaded
        .as_ref()
        .map_or(None, |l| l.config.log_levels.runtime(debug));
    let log = log::init(inherited.dir_name.vm_id(), level);
    let result = loaded.map_err(ServeError::from).and_then(|loaded| {
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        // One thread: nearly everything the shim does is waiting.
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(serve(inherited, loaded.config, log, begin))
    });
    if let Err(error) = &result {
        tracing::error!("{}", fc_errors::chain(error));
    }
    result
}

async fn serve(
    inherited: Inherited,
    config: Config,
    log: Tail,
    (start_unix_ns, start): (u64, Instant),
) -> Result<(), ServeError> {
    let task_connections = Connections::default();
    let control_connections = Connections::default();
    let tasks = Incoming::new(inherited.task_socket, task_connections.clone())?;
    let control = Incoming::new(inherited.control_socket, control_connections.clone())?;

    let shim = Shim::new(config, &inherited.dir_name, inherited.ttrpc_address, log);
    let _lock = inherited.lock;
    signals::watch(&shim)?;
    if let Some(request) = inherited.request {
        // Before serving: a Create that is already waiting in the socket must find a VM on its way.
        if let Err(error) = life::begin(&shim, request, life::Origin::Launcher) {
            tracing::error!("{}", fc_errors::chain(&error));
        }
    }
    let mut task_server = Server::new()
        .add_listener(Listener::new(tasks))
        .register_service(service::TaskService::register(&shim));
    let mut control_server = Server::new()
        .add_listener(Listener::new(control))
        .register_service(control::ControlService::register(&shim))
        .register_service(vm_service::VmService::register(&shim));
    task_server.start().await?;
    control_server.start().await?;
    shim.timeline.vm("shim_serving");
    shim.progress.record(Span {
        name: "shim",
        start_unix_ns,
        duration: start.elapsed(),
        waits_for: WaitsFor::Nobody,
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "Serving");

    shim.ended().await;
    // The last answers are under way; a client closes its connection when it has them.
    let closed = async {
        task_connections.all_closed().await;
        control_connections.all_closed().await;
    };
    let _ = tokio::time::timeout(stop::LAST_ANSWER_BOUND, closed).await;
    shim.events.flush(stop::FLUSH_BOUND).await;
    shim.timeline.vm("shim_exit");
    drop(Arc::clone(&shim));
    Ok(())
}
