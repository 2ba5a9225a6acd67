//! `firecracker-bench`: measures the product on this machine. No test: what is fast enough, people say.

mod create;
mod drives;
mod host;
mod rootfs;
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
    Create(VmArgs),
    /// Drives attached for containers and released again, as the VM's shim sees it; one VM for all.
    Drives(VmArgs),
    /// Images of root file systems made and found again, writable disks; no VM.
    Rootfs(RootfsArgs),
}

/// What a measurement with VMs needs.
#[derive(Parser)]
struct VmArgs {
    /// Directory for a private containerd and the VMs' directories.
    #[arg(long)]
    dir: PathBuf,
    /// Output directory of `firecracker-image build`.
    #[arg(long)]
    guest: PathBuf,
    /// VMM to use instead of the one that fits the machine.
    #[arg(long)]
    vmm: Option<PathBuf>,
    /// How many rounds, one after the other.
    #[arg(long, default_value_t = 20)]
    repeat: u32,
}

/// What a measurement without VMs needs.
#[derive(Parser)]
struct RootfsArgs {
    /// Directory in which a temporary one is made for layers, images and disks: about 400 MB.
    #[arg(long)]
    dir: PathBuf,
    /// How many containers to prepare for.
    #[arg(long, default_value_t = 20)]
    repeat: u32,
}

fn main() -> ExitCode {
    let done = match Args::parse().what {
        What::Create(args) => create::run(&args),
        What::Drives(args) => drives::run(&args),
        What::Rootfs(args) => rootfs::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("firecracker-bench: {}", fc_errors::chain(&error));
            ExitCode::FAILURE
        }
    }
}
