//! A private containerd that runs its containers in microVMs, from a guest image and a VMM.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::containerd::{Containerd, ContainerdError, Options};
use crate::runtime_config::{self, Layout};

/// What to start.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// Directory for containerd, VM directories and caches; made when missing.
    pub dir: &'a Path,
    /// Output directory of `firecracker-image build`.
    pub guest: &'a Path,
    /// The VMM; `None`: the one that fits the machine.
    pub vmm: Option<&'a Path>,
    /// Directory with `containerd` and `ctr`; `None`: found in `PATH`.
    pub containerd: Option<&'a Path>,
}

/// What was started. Dropping it ends containerd; the directory stays.
#[derive(Debug)]
pub struct Started {
    /// The daemon.
    pub containerd: Containerd,
    /// Where everything is, by absolute paths.
    pub layout: Layout,
    /// The runtime's configuration file.
    pub config: PathBuf,
    /// Directory with the product's binaries: this program's own.
    pub bin_dir: PathBuf,
}

/// Why there is no such containerd.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// containerd did not start.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// There is no VMM.
    #[error(transparent)]
    Vmm(#[from] fc_client::host::vmm::ChooseError),
    /// A directory or file that is missing, or cannot be written.
    #[error("Cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Setup<'_> {
    /// Starts it, with keys of the runtime's configuration changed by `edit`. Says on standard output which VMM is
    /// used, and why.
    ///
    /// # Errors
    /// There is no VMM, a path cannot be used, or containerd does not start.
    pub fn start(self, edit: impl FnOnce(&mut Map<String, Value>)) -> Result<Started, SetupError> {
        std::fs::create_dir_all(self.dir).map_err(io_error(self.dir))?;
        let dir = self.dir.canonicalize().map_err(io_error(self.dir))?;
        let guest = self.guest.canonicalize().map_err(io_error(self.guest))?;
        let vmm = fc_client::host::vmm::choose(self.vmm)?;
        println!("VMM: {}", vmm.reason);
        if let Some(hint) = &vmm.hint {
            println!("     {hint}");
        }
        let layout = Layout {
            vmm: vmm.path,
            guest,
            dir: dir.clone(),
        };
        let mut keys = layout.config();
        edit(&mut keys);
        let config = dir.join("firecracker-runtime.json");
        runtime_config::write(&config, &keys).map_err(io_error(&config))?;
        let bin_dir = std::env::current_exe()
            .ok()
            .and_then(|exe| exe.parent().map(Path::to_owned))
            .unwrap_or_else(|| PathBuf::from("."));
        let containerd = Containerd::start(Options {
            dir,
            prefix: self.containerd.map(Path::to_owned),
            bin_dir: bin_dir.clone(),
            runtime_config: config.clone(),
            extra_config: String::new(),
        })?;
        Ok(Started {
            containerd,
            layout,
            config,
            bin_dir,
        })
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> SetupError {
    let path = path.to_owned();
    move |source| SetupError::Io { path, source }
}
