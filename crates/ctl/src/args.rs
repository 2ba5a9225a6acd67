//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::cache::CacheCommand;
use crate::doctor::DoctorArgs;
use crate::vm::VmCommand;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something else went wrong (doctor: there are findings to act on)
  2  the command line or a value in it is wrong
  3  no such VM, or its VMM is dead
  4  the VM exists already
  5  the VM is in the wrong state, or does not have what was asked for
  6  it took too long
  7  the daemon, the VM's shim or its guest cannot be reached

Examples:
  firecracker-ctl doctor
  firecracker-ctl vm create web --vcpus 2 --memory 512
  firecracker-ctl vm list --json
  firecracker-ctl vm console web --follow";

/// The microVMs of this host: create, look at, stop; and what is wrong with the host.
#[derive(Debug, Parser)]
#[command(name = "firecracker-ctl", version, after_help = EXIT_CODES)]
pub struct Args {
    /// The containerd namespace of the VM.
    #[arg(
        long,
        short = 'n',
        global = true,
        env = "CONTAINERD_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "default"
    )]
    pub namespace: String,
    /// gRPC address of the containerd whose VMs these are.
    #[arg(
        long,
        global = true,
        env = "CONTAINERD_ADDRESS",
        value_name = "PATH",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub containerd_address: String,
    /// The runtime's configuration file [default: the one that the runtime reads].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// VMs: create, list, look at, stop.
    Vm {
        /// What to do with them.
        #[command(subcommand)]
        command: VmCommand,
    },
    /// The images that VMs share.
    Cache {
        /// What to do with them.
        #[command(subcommand)]
        command: CacheCommand,
    },
    /// Remove what dead VMs left: processes, sockets, directories, mounts.
    Gc,
    /// Check this host and say what to do about each finding.
    Doctor(DoctorArgs),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        let root = Args::command();
        let vm = root.find_subcommand("vm").expect("vm");
        for command in vm.get_subcommands() {
            let leaves: Vec<_> = command.get_subcommands().collect();
            let leaves = if leaves.is_empty() {
                vec![command]
            } else {
                leaves
            };
            for leaf in leaves {
                let help = leaf.get_after_help().map(ToString::to_string);
                assert!(
                    help.is_some_and(|help| help.contains("firecracker-ctl vm")),
                    "{} has no example",
                    leaf.get_name()
                );
            }
        }
    }
}
