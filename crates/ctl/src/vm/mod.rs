//! The commands about VMs.

mod balloon;
mod create;
mod info;
mod life;
mod list;
mod metadata;
mod mount;
mod progress;
mod tap;
mod text;

use clap::Subcommand;

use crate::error::CtlError;
use crate::host::Host;

pub use create::CreateArgs;

/// What can be done with VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create a VM and wait until its agent answers.
    Create(Box<CreateArgs>),
    /// List the VMs of all namespaces.
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  firecracker-ctl vm list --json"
    )]
    List,
    /// Show what a VM is and does.
    #[command(after_help = "Example:\n  firecracker-ctl vm info web")]
    Info(Id),
    /// Pause a VM: its virtual CPUs stop.
    #[command(after_help = "Example:\n  firecracker-ctl vm pause web")]
    Pause(Id),
    /// Let a paused VM go on.
    #[command(after_help = "Example:\n  firecracker-ctl vm resume web")]
    Resume(Id),
    /// Stop a VM and wait until nothing of it is left.
    #[command(after_help = "Example:\n  firecracker-ctl vm stop web --timeout 10")]
    Stop(life::StopArgs),
    /// Wait until a VM and its shim have ended.
    #[command(after_help = "Example:\n  firecracker-ctl vm wait web && echo gone")]
    Wait(Id),
    /// A VM's metadata, as the guest's metadata service shows it. Needs an interface with it (`vm create --tap NAME,mmds`).
    Metadata {
        /// What to do with it.
        #[command(subcommand)]
        command: metadata::MetadataCommand,
    },
    /// A VM's balloon, with which the host takes memory back.
    Balloon {
        /// What to do with it.
        #[command(subcommand)]
        command: balloon::BalloonCommand,
    },
    /// Show what the guest wrote to its serial console.
    #[command(after_help = "Example:\n  firecracker-ctl vm console web --follow")]
    Console(text::TextArgs),
    /// Show the log of a VM's shim, or of its VMM.
    #[command(
        after_help = "Examples:\n  firecracker-ctl vm logs web\n  firecracker-ctl vm logs web --vmm --follow"
    )]
    Logs(text::LogsArgs),
}

/// The VM that a command is about.
#[derive(Debug, Clone, clap::Args)]
pub struct Id {
    /// Id of the VM.
    #[arg(value_name = "VM")]
    pub id: String,
}

/// Runs a command.
///
/// # Errors
/// Whatever its call failed with.
pub async fn run(host: &Host, command: &VmCommand) -> Result<(), CtlError> {
    match command {
        VmCommand::Create(args) => create::run(host, args).await,
        VmCommand::List => list::run(host).await,
        VmCommand::Info(vm) => info::run(host, &vm.id).await,
        VmCommand::Pause(vm) => life::pause(host, &vm.id).await,
        VmCommand::Resume(vm) => life::resume(host, &vm.id).await,
        VmCommand::Stop(args) => life::stop(host, args).await,
        VmCommand::Wait(vm) => life::wait(host, &vm.id).await,
        VmCommand::Metadata { command } => metadata::run(host, command).await,
        VmCommand::Balloon { command } => balloon::run(host, command).await,
        VmCommand::Console(args) => text::console(host, args).await,
        VmCommand::Logs(args) => text::logs(host, args).await,
    }
}

/// A failed control call.
pub(crate) fn call_error(error: fc_proto::ttrpc::Error) -> CtlError {
    CtlError::call("The control service", error)
}
