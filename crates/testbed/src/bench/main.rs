//! `firecracker-bench`: measures the product on this machine. No test: what is fast enough, people say.

mod create;
mod spans;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures the product on this machine.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// CreateVM, split into VMM, guest and our own part; one VM at a time.
    Create(CreateArgs),
}

/// What a measurement needs.
#[derive(Parser)]
struct CreateArgs {
    /// Directory for a private containerd and the VMs' directories.
    #[arg(long)]
    dir: PathBuf,
    /// Output directory of `firecracker-image build`.
    #[arg(long)]
    guest: PathBuf,
    /// VMM to use instead of the one that fits the machine.
    #[arg(long)]
    vmm: Option<PathBuf>,
    /// How many VMs to create, one after the other.
    #[arg(long, default_value_t = 20)]
    repeat: u32,
}

fn main() -> ExitCode {
    let What::Create(args) = Args::parse().what;
    match create::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("firecracker-bench: {}", fc_vm::machine::chain(&error));
            ExitCode::FAILURE
        }
    }
}
