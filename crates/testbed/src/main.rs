//! `make run`: one container in a microVM under a private containerd, with the
//! phase table of the run and a check that nothing is left behind.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::Parser;
use fc_testbed::containerd::{Containerd, ContainerdError};
use fc_testbed::image::{self, ImageError};
use fc_testbed::leftovers::Scope;
use fc_testbed::phases;
use fc_testbed::runtime_config::Layout;
use fc_testbed::setup::{Setup, SetupError, Started};
use fc_vm::timeline::now_ns;

/// How long shim and VMM may take to end after `ctr` returned.
const TEARDOWN_BOUND: Duration = Duration::from_secs(60);

/// Runs one container in a microVM under a private containerd.
#[derive(Parser)]
struct Args {
    /// Directory for the private containerd, VM directories and caches.
    #[arg(long)]
    dir: PathBuf,
    /// Output directory of `firecracker-image build`.
    #[arg(long)]
    guest: PathBuf,
    /// Image to run; the default is made locally, others are pulled.
    #[arg(long, default_value = image::NAME)]
    image: String,
    /// VMM to use instead of the one that fits the machine.
    #[arg(long)]
    vmm: Option<PathBuf>,
    /// Directory with another containerd and ctr.
    #[arg(long)]
    containerd: Option<PathBuf>,
    /// How many times to run the command, one after the other.
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Command and arguments; the image's own when there are none.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Why the run could not be done.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("Still there after the run:\n  {}", .0.join("\n  "))]
    LeftBehind(Vec<String>),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(status) => exit_code(status),
        Err(error) => {
            eprintln!("firecracker-run: {}", fc_errors::chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The container's exit code is ours.
fn exit_code(status: ExitStatus) -> ExitCode {
    status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from)
}

fn run(args: &Args) -> Result<ExitStatus, RunError> {
    let setup = Setup {
        dir: &args.dir,
        guest: &args.guest,
        vmm: args.vmm.as_deref(),
        containerd: args.containerd.as_deref(),
    };
    let Started {
        containerd, layout, ..
    } = setup.start(|_| {})?;
    // Timelines of earlier runs would only grow; no timeline yet is fine too.
    let _ = std::fs::remove_file(layout.timeline());
    let scope = Scope::new(&layout.dir);
    provide_image(&containerd, &args.image, &layout.dir)?;
    let mut status = ExitStatus::default();
    for _ in 0..args.repeat.max(1) {
        status = run_once(args, &containerd, &layout, &scope)?;
    }
    drop(containerd);
    let left = scope.leftovers(&[layout.shim_base()]);
    if left.is_empty() {
        println!("Left behind: nothing");
        Ok(status)
    } else {
        Err(RunError::LeftBehind(left))
    }
}

fn provide_image(containerd: &Containerd, name: &str, dir: &Path) -> Result<(), RunError> {
    if containerd.has_image(name)? {
        return Ok(());
    }
    if name == image::NAME {
        let tar = dir.join("image.tar");
        image::write(&tar)?;
        containerd.import(name, &tar)?;
    } else {
        println!("Pulling {name}");
        containerd.ctr_ok(&["image", "pull", name])?;
    }
    Ok(())
}

fn run_once(
    args: &Args,
    containerd: &Containerd,
    layout: &Layout,
    scope: &Scope,
) -> Result<ExitStatus, RunError> {
    let name = format!("run-{}", std::process::id());
    let mut ctr = containerd.ctr();
    ctr.args(["run", "--rm", "--runtime", "aws.firecracker"])
        .args([&args.image, &name])
        .args(&args.command);
    println!("$ ctr {}", words(&ctr));
    let _ = std::io::stdout().flush();
    let begin = now_ns();
    let status = ctr.status().map_err(|source| ContainerdError::Spawn {
        program: "ctr".into(),
        source,
    })?;
    let gone = scope.wait_for_processes(TEARDOWN_BOUND);
    let end = now_ns();
    println!("exit code {}", status.code().unwrap_or(-1));
    if !gone {
        return Err(RunError::LeftBehind(scope.leftovers(&[])));
    }
    let timeline = layout.timeline();
    match phases::read(&timeline) {
        Ok(moments) => {
            let rows = phases::phases(&moments, begin, end);
            print!("{}", phases::table(&rows, end - begin));
        }
        Err(e) => println!("No phase table: {}: {e}", timeline.display()),
    }
    Ok(status)
}

/// The arguments after the address, as a person would type them.
fn words(ctr: &std::process::Command) -> String {
    ctr.get_args()
        .skip(2)
        .map(|arg| {
            let arg = arg.to_string_lossy();
            if arg.is_empty()
                || arg.contains(|c: char| c.is_whitespace() || "'\"$;|&<>".contains(c))
            {
                format!("'{}'", arg.replace('\'', r"'\''"))
            } else {
                arg.into_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}
