//! containerd's runtime v2 shim for microVMs.
//!
//! One executable, three lives:
//! - `start` ([`start`]) and `delete` ([`delete`]) are short programs that containerd runs in a
//!   task's bundle directory;
//! - without an action it is the shim of one VM ([`serve`]), started by `start` through
//!   `fc_vm::launch`, and lives as long as the VM.

mod args;
mod bundle;
mod daemon;
mod delete;
mod info;
mod serve;
mod start;
mod stopped;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use args::{Action, Args};

fn main() -> ExitCode {
    let output = match Args::parse(std::env::args_os().skip(1)) {
        Ok(args) => run(&args),
        Err(error) => Err(error.into()),
    };
    // containerd takes stdout as the answer and, after a failure, whatever was written as the reason.
    match output.and_then(|bytes| Ok(std::io::stdout().write_all(&bytes)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Does what `args` ask for; the result goes to stdout.
fn run(args: &Args) -> Result<Vec<u8>, Box<dyn Error>> {
    Ok(match args.action {
        Action::Start => start::run(args)?.into_bytes(),
        Action::Delete => delete::run(args)?,
        Action::Info => info::runtime_info()?,
        Action::Version => info::version().into_bytes(),
        Action::Serve => {
            serve::run(args)?;
            Vec::new()
        }
    })
}

/// An error and its causes, on one line.
fn one_line(error: &dyn Error) -> String {
    fc_errors::chain(error).replace('\n', " ")
}
