//! `firecracker-control`: the control API of a host's VMs on a socket. VMs go on without it.

mod daemon;
mod notify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fc_config::{Config, Level, Loaded};
use fc_control::host::Settings;
use fc_errors::chain;
use tracing_subscriber::filter::LevelFilter;

use daemon::DaemonError;

/// Serves the control API (ttrpc service Firecracker) for the VMs of one containerd.
///
/// The configuration is the runtime's: the file that the environment variable
/// FIRECRACKER_CONTAINERD_RUNTIME_CONFIG_PATH names, else /etc/containerd/firecracker-runtime.json. VMs go on
/// when this program ends, and are found again when it starts.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// gRPC address of the containerd whose VMs these are.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/containerd/containerd.sock"
    )]
    containerd_address: String,
    /// containerd's ttrpc address, where events go [default: --forward-to, else the gRPC address and ".ttrpc"].
    #[arg(long, value_name = "PATH")]
    containerd_ttrpc_address: Option<String>,
    /// Serve this address too, which clients of firecracker-containerd use: containerd's gRPC address and
    /// ".ttrpc". containerd itself has to serve another one ([ttrpc] address in its configuration).
    #[arg(long, value_name = "PATH", requires = "forward_to")]
    own_ttrpc_address: Option<PathBuf>,
    /// Where containerd serves ttrpc instead: what is not for this program is passed on.
    #[arg(long, value_name = "PATH", requires = "own_ttrpc_address")]
    forward_to: Option<PathBuf>,
    /// The runtime's configuration file, instead of the usual one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The shim [default: containerd-shim-aws-firecracker beside this program, or on PATH].
    #[arg(long, value_name = "FILE")]
    shim: Option<PathBuf>,
    /// Log at debug level, shims too.
    #[arg(long)]
    debug: bool,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("firecracker-control: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), DaemonError> {
    let loaded = match &args.config {
        // The shims read it too, from directories of their own.
        Some(path) => Config::load_from(&std::path::absolute(path).map_err(DaemonError::Setup)?)?,
        None => Config::load()?,
    };
    init_log(loaded.config.log_levels.runtime(args.debug));
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let shared = args.own_ttrpc_address.clone().zip(args.forward_to.clone());
    let settings = settings(args, loaded);
    // One thread: nearly everything the daemon does is waiting, and what blocks has threads of its own.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::Setup)?
        .block_on(daemon::run(settings, shared))
}

fn settings(args: Args, loaded: Loaded) -> Settings {
    let mut settings = Settings::new(loaded.config, &args.containerd_address);
    settings.config_path = Some(loaded.path);
    settings.debug = args.debug;
    let moved = args.forward_to.map(|path| path.display().to_string());
    if let Some(address) = args.containerd_ttrpc_address.or(moved) {
        settings.ttrpc_address = address;
    }
    if let Some(shim) = args.shim {
        settings.shim = shim;
    }
    settings
}

fn init_log(level: Option<Level>) {
    let level = match level {
        Some(Level::Debug) => LevelFilter::DEBUG,
        Some(Level::Warning) => LevelFilter::WARN,
        Some(Level::Error) => LevelFilter::ERROR,
        Some(Level::Info) | None => LevelFilter::INFO,
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .with_writer(std::io::stderr)
        .finish();
    // Fails only when there is a subscriber already; this runs once.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
