//! `firecracker-ctl`: the VMs of a host, for people.
//!
//! Calls go to the daemon `firecracker-control` where one listens; elsewhere this program does the same
//! through the same library. What the control API does not have (a list, a VM's status and
//! console) comes from the VMs' directories and from their shims.
//!
//! - `args`: the command line.
//! - `host`: configuration and connections.
//! - `vm`: the commands about VMs.
//! - `cache`, `gc`, `doctor`: the commands about the host.
//! - `output`, `error`: what is printed, and the exit code.

mod args;
mod cache;
mod doctor;
mod error;
mod gc;
mod host;
mod output;
mod vm;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};
use error::CtlError;
use host::Host;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("firecracker-ctl: {}", fc_errors::chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: Args) -> Result<ExitCode, CtlError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CtlError::Runtime)?;
    if matches!(args.command, Command::Doctor(_)) {
        // Finds out itself what is wrong with the configuration.
        return Ok(doctor::run(&args, &runtime));
    }
    let host = Host::load(&args)?;
    match &args.command {
        Command::Vm { command } => runtime.block_on(vm::run(&host, command))?,
        Command::Cache { command } => cache::run(&host, command)?,
        Command::Gc => runtime.block_on(gc::run(&host))?,
        Command::Doctor(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}
