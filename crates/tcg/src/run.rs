//! The program: command line, API, and the end of the guest.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};

use crate::api::{Server, ServerError};
use crate::cli::{Cli, CliError};
use crate::controller::{Controller, FIRECRACKER_VERSION, GuestEnd};
use crate::exit::Exit;
use crate::fault::Fault;
use crate::mmds::{Mmds, MmdsFault};
use crate::model::{MetricsConfig, VmConfig};
use crate::{jail, logger, metrics, tsc};

/// Why the process ends without success.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("Arguments parsing error: {0}")]
    Arguments(#[from] CliError),
    #[error("Could not initialize logger: Failed to open target file: {0}")]
    Logger(#[source] io::Error),
    #[error("Could not initialize metrics: {0}")]
    Metrics(#[source] metrics::MetricsError),
    #[error("Cannot set up the event loop: {0}")]
    EventLoop(#[source] io::Error),
    #[error("RunWithApiError error: {0}")]
    Server(#[from] ServerError),
    #[error("Unable to open or read from the configuration file {path}: {error}", path = path.display())]
    ReadConfig {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("Unable to open or read from the mmds content file {path}: {error}", path = path.display())]
    ReadMetadata {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("MMDS error: metadata provided not valid json: {0}")]
    ParseMetadata(#[source] serde_json::Error),
    #[error("Populating MMDS from file failed: {0}.")]
    Metadata(#[source] MmdsFault),
    #[error("Configuration for VMM from one single json failed: Invalid JSON: {0}")]
    ParseConfig(#[source] serde_json::Error),
    #[error("Could not Start MicroVM from one single json: {0}")]
    StartFromConfig(#[source] Fault),
    #[error("The vsock device has failed, the guest's connections are lost: {0}")]
    Vsock(String),
    #[error("QEMU failed: {0}")]
    Qemu(#[source] crate::qemu::QemuError),
    #[error("Shutting down VM after intercepting SIGHUP.")]
    Hangup,
}

impl RunError {
    fn exit(&self) -> Exit {
        match self {
            Self::Arguments(CliError::Level(_)) => Exit::BadConfiguration,
            Self::Arguments(CliError::NotOffered { .. }) => Exit::ArgParsing,
            Self::Arguments(CliError::IdLength(_) | CliError::IdCharacter(..))
            | Self::ReadConfig { .. }
            | Self::ReadMetadata { .. }
            | Self::ParseMetadata(_) => Exit::Aborted,
            Self::Hangup => Exit::Hangup,
            _ => Exit::Generic,
        }
    }
}

/// Runs the program. `main` calls it, on its own thread: QEMU lives as long as that thread.
#[must_use]
pub fn main() -> Exit {
    let start = tsc::Mark::now();
    logger::init();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails only if there is nobody to read it.
            drop(error.print());
            return match error.kind() {
                ErrorKind::DisplayHelp => Exit::Ok,
                // A number that is none.
                ErrorKind::ValueValidation => Exit::Aborted,
                _ => Exit::ArgParsing,
            };
        }
    };
    if cli.version {
        println!(
            "Firecracker v{FIRECRACKER_VERSION}\nfirecracker-tcg v{} (QEMU, software emulation)",
            env!("CARGO_PKG_VERSION")
        );
        return Exit::Ok;
    }
    if cli.print_jail_paths {
        return print_jail_paths();
    }
    match run(&cli, start) {
        Ok(()) => {
            log::info!("Firecracker exiting successfully. exit_code=0");
            Exit::Ok
        }
        Err(error) => {
            let exit = error.exit();
            log::error!("{error}");
            eprintln!("Error: {error}");
            log::error!("Firecracker exiting with error. exit_code={}", exit as u8);
            exit
        }
    }
}

fn print_jail_paths() -> Exit {
    match jail::paths() {
        Ok(paths) => {
            println!("{:#}", serde_json::json!(paths));
            Exit::Ok
        }
        Err(error) => {
            eprintln!("Error: {error}");
            Exit::Generic
        }
    }
}

fn run(cli: &Cli, start: tsc::Mark) -> Result<(), RunError> {
    cli.check()?;
    logger::set_id(&cli.id);
    logger::configure(cli.logger()?).map_err(RunError::Logger)?;
    log::info!(
        "Running Firecracker v{FIRECRACKER_VERSION} (firecracker-tcg v{})",
        env!("CARGO_PKG_VERSION")
    );
    if let Some(path) = &cli.metrics_path {
        let config = MetricsConfig {
            metrics_path: path.clone(),
        };
        metrics::configure(&config).map_err(RunError::Metrics)?;
    }
    if cli.no_seccomp {
        log::info!("--no-seccomp changes nothing: QEMU's own system call filter stays on");
    }
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(RunError::EventLoop)?;
    let outcome = runtime.block_on(serve(cli, start));
    // What it holds (QEMU too, should it still run) is dropped here, before the process says that it ends.
    drop(runtime);
    if let Err(error) = metrics::flush() {
        log::error!("Failed to write metrics while stopping: {error}");
    }
    outcome
}

/// Thousands of vsock connections need as many descriptors; the soft limit is often 1024.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("Cannot raise the limit on open files: {error}");
    }
}

async fn serve(cli: &Cli, start: tsc::Mark) -> Result<(), RunError> {
    let mut hangup = signal(SignalKind::hangup()).map_err(RunError::EventLoop)?;
    let (ended, mut end) = mpsc::channel(1);
    let controller = Controller::new(cli.id.clone(), metadata(cli)?, start, ended);
    let controller = Arc::new(Mutex::new(controller));
    let server = match cli.no_api {
        true => None,
        false => Some(Server::bind(&cli.api_sock, cli.http_api_max_payload_size)?),
    };
    if let Some(path) = &cli.config_file {
        let text = std::fs::read_to_string(path).map_err(|error| RunError::ReadConfig {
            path: path.clone(),
            error,
        })?;
        let config: VmConfig = serde_json::from_str(&text).map_err(RunError::ParseConfig)?;
        controller
            .lock()
            .await
            .boot(config)
            .await
            .map_err(RunError::StartFromConfig)?;
        log::info!("Successfully started microvm that was configured from one single json");
    }
    let api = async {
        match server {
            Some(server) => server.run(Arc::clone(&controller)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        guest = end.recv() => guest.map_or(Ok(()), finish),
        _ = hangup.recv() => Err(RunError::Hangup),
        never = api => match never {},
        never = flush_metrics(&controller) => match never {},
    }
}

/// The data store with its first content.
fn metadata(cli: &Cli) -> Result<Mmds, RunError> {
    let limit = cli.mmds_size_limit;
    let mmds = Mmds::new(limit.unwrap_or(cli.http_api_max_payload_size));
    if let Some(path) = &cli.metadata {
        let text = std::fs::read_to_string(path).map_err(|error| RunError::ReadMetadata {
            path: path.clone(),
            error,
        })?;
        let value = serde_json::from_str(&text).map_err(RunError::ParseMetadata)?;
        mmds.lock().store.put(value).map_err(RunError::Metadata)?;
        log::info!("Successfully added metadata to mmds from file");
    }
    Ok(mmds)
}

async fn flush_metrics(controller: &Mutex<Controller>) -> Infallible {
    let mut ticks = tokio::time::interval(metrics::PERIOD);
    loop {
        ticks.tick().await;
        if let Err(error) = controller.lock().await.flush_metrics().await {
            log::error!("Failed to write metrics: {error}");
        }
    }
}

/// Tells how the guest ended. Reset, power-off and panic all end the VMM with success, as in Firecracker.
fn finish(guest: GuestEnd) -> Result<(), RunError> {
    let (end, console) = match guest {
        GuestEnd::Qemu { end, console } => (end, console),
        GuestEnd::Vsock(reason) => return Err(RunError::Vsock(reason)),
    };
    let panic = console.finish();
    if !end.success() {
        return Err(RunError::Qemu(end.into()));
    }
    match panic {
        Some(line) => log::error!("The guest panicked: {line}"),
        None => log::info!("Vmm is stopping."),
    }
    Ok(())
}
