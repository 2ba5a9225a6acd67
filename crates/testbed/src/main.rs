//! `make run`: one container in a microVM under a private containerd, with the
//! phase table of the run and a check that nothing is left behind.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use fc_testbed::containerd::{Containerd, ContainerdError, Options};
use fc_testbed::image::{self, ImageError};
use fc_testbed::leftovers::Scope;
use fc_testbed::phases;
use fc_testbed::runtime_config::{self, Layout};

/// How long shim and VMM may take to end after `ctr` returned.
const TEARDOWN_BOUND: Duration = Duration::from_secs(15);

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
    Containerd(#[from] ContainerdError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Vmm(#[from] fc_client::host::vmm::ChooseError),
    #[error("Cannot use {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
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
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::Io { path, source }
    };
    std::fs::create_dir_all(&args.dir).map_err(io(&args.dir))?;
    let dir = args.dir.canonicalize().map_err(io(&args.dir))?;
    let guest = args.guest.canonicalize().map_err(io(&args.guest))?;

    let vmm = fc_client::host::vmm::choose(args.vmm.as_deref())?;
    println!("VMM: {}", vmm.reason);
    if let Some(hint) = &vmm.hint {
        println!("     {hint}");
    }
    let layout = Layout {
        vmm: vmm.path,
        guest,
        dir: dir.clone(),
    };
    let config = dir.join("firecracker-runtime.json");
    runtime_config::write(&config, &layout.config()).map_err(io(&config))?;
    // Timelines of earlier runs would only grow; no timeline yet is fine too.
    let _ = std::fs::remove_file(layout.timeline());

    let vm_dirs = [layout.shim_base()];
    let scope = Scope::new(&dir);
    let containerd = Containerd::start(Options {
        dir: dir.clone(),
        prefix: args.containerd.clone(),
        bin_dir: bin_dir(),
        runtime_config: config,
        extra_config: String::new(),
    })?;
    provide_image(&containerd, &args.image, &dir)?;
    let mut status = ExitStatus::default();
    for _ in 0..args.repeat.max(1) {
        status = run_once(args, &containerd, &layout, &scope)?;
    }
    drop(containerd);
    let left = scope.leftovers(&vm_dirs);
    if left.is_empty() {
        println!("Left behind: nothing");
        Ok(status)
    } else {
        Err(RunError::LeftBehind(left))
    }
}

fn bin_dir() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned))
        .unwrap_or_else(|| PathBuf::from("."))
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
    let begin = unix_ns();
    let status = ctr.status().map_err(|source| ContainerdError::Spawn {
        program: "ctr".into(),
        source,
    })?;
    let gone = scope.wait_for_processes(TEARDOWN_BOUND);
    let end = unix_ns();
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

fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| u64::try_from(d.as_nanos()).ok())
        .unwrap_or(0)
}
