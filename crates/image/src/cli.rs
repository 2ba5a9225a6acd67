//! The command line.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use fc_proto::image::Manifest;

use crate::build::{self, KernelSource, Request};
use crate::package::Cache;
use crate::{output, tool};

/// Builds the guest of a Firecracker microVM: kernel, initrd and root image.
///
/// The result is a directory with default-vmlinux.bin, default-initrd.img (unless
/// the kernel has everything built in), default-rootfs.img and image.json, which
/// says what is in them. Nothing is built when nothing changed.
#[derive(Debug, Parser)]
#[command(name = "firecracker-image", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Build(BuildArgs),
    /// Print what is in an image directory, and check that its files are intact.
    Inspect {
        /// The image directory.
        dir: PathBuf,
    },
}

/// Build an image directory, or bring it up to date.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  With Debian's kernel for virtual machines, downloaded and unpacked but not installed:
    firecracker-image build --output /var/lib/firecracker-containerd/runtime \\
        --agent firecracker-agent --initrd-init firecracker-initrd

  With a kernel of this machine:
    firecracker-image build --output image --agent firecracker-agent --initrd-init firecracker-initrd \\
        --kernel /boot/vmlinuz-$(uname -r) --modules /lib/modules/$(uname -r)

  With a kernel of your own that has virtio_mmio, virtio_blk, vsock, erofs, overlay and ext4 built in:
    firecracker-image build --output image --agent firecracker-agent --kernel vmlinux

  With another OCI runtime:
    firecracker-image build --output image ... --runtime /usr/sbin/runc")]
struct BuildArgs {
    /// Directory to build into; created when missing.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The guest's agent, a statically linked firecracker-agent; runs as PID 1.
    #[arg(long, value_name = "PATH")]
    agent: PathBuf,
    /// The initrd's program, a statically linked firecracker-initrd. Not needed with a kernel
    /// without modules.
    #[arg(long, value_name = "PATH")]
    initrd_init: Option<PathBuf>,
    /// The OCI runtime that the agent uses. Its shared libraries come along [default: crun on PATH].
    #[arg(long, value_name = "PATH")]
    runtime: Option<PathBuf>,
    /// A kernel: vmlinux, bzImage or arm64 Image. Without --modules it must have everything built in.
    #[arg(long, value_name = "PATH", conflicts_with = "kernel_package")]
    kernel: Option<PathBuf>,
    /// The kernel's modules: lib/modules/<release>, or a directory above it.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Debian package to take the kernel and its modules from, or one that depends on it.
    #[arg(long, value_name = "NAME", default_value = default_package())]
    kernel_package: String,
    /// Where downloaded kernels are kept [default: firecracker-image in $XDG_CACHE_HOME or ~/.cache].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Build also when nothing changed.
    #[arg(long)]
    force: bool,
}

const fn default_package() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "linux-image-cloud-arm64"
    } else {
        "linux-image-cloud-amd64"
    }
}

/// Does what the command line says.
pub fn run() -> Result<(), Box<dyn std::error::Error>> {
    match Cli::parse().command {
        Command::Build(args) => run_build(args),
        Command::Inspect { dir } => inspect(&dir),
    }
}

fn run_build(args: BuildArgs) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let kernel = match args.kernel {
        Some(kernel) => KernelSource::Files {
            kernel,
            modules: args.modules,
        },
        None => KernelSource::Package {
            name: args.kernel_package,
            cache: Cache::new(args.cache.unwrap_or_else(Cache::default_dir)),
        },
    };
    let runtime = match args.runtime {
        Some(runtime) => runtime,
        None => tool::find("crun", "crun")?,
    };
    let request = Request {
        output: args.output,
        kernel,
        agent: args.agent,
        initrd_init: args.initrd_init,
        runtime,
        force: args.force,
    };
    let built = build::build(&request)?;
    let dir = request.output.display();
    if built {
        print!("{}", summary(&output::read_manifest(&request.output)?));
        println!("Built {dir} in {:.1} s", start.elapsed().as_secs_f64());
    } else {
        println!("{dir} is up to date");
    }
    Ok(())
}

fn inspect(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let manifest = output::read_manifest(dir)?;
    print!("{}", summary(&manifest));
    println!(
        "Builder {}, guest protocol {}",
        manifest.builder, manifest.protocol
    );
    for (option, value) in &manifest.request {
        println!("  {option}: {value}");
    }
    output::verify(dir, &manifest)?;
    println!("All files are intact");
    Ok(())
}

fn summary(manifest: &Manifest) -> String {
    let mut text = format!(
        "Kernel {}, at least {} MiB of memory\n",
        manifest.kernel_release, manifest.min_memory_mib
    );
    for (name, info) in &manifest.files {
        let tenths = info.size * 10 / (1 << 20);
        text += &format!(
            "  {name:<20} {:>4}.{} MiB  sha256 {}\n",
            tenths / 10,
            tenths % 10,
            info.sha256
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let args = [
            "x",
            "build",
            "--output",
            "o",
            "--agent",
            "a",
            "--modules",
            "m",
        ];
        assert!(
            Cli::try_parse_from(args).is_err(),
            "--modules belongs to a --kernel"
        );
    }
}
