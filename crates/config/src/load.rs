//! Where the file is, and reading it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use crate::document::Document;
use crate::{Config, ConfigError, Warning};

/// Environment variable that names the file, if not [`DEFAULT_PATH`].
pub const PATH_ENV: &str = "FIRECRACKER_CONTAINERD_RUNTIME_CONFIG_PATH";

/// The file's usual path.
pub const DEFAULT_PATH: &str = "/etc/containerd/firecracker-runtime.json";

/// A configuration that was read.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// The file.
    pub path: PathBuf,
    /// Keys without effect, for the log.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Reads the file that [`PATH_ENV`] names, or [`DEFAULT_PATH`].
    ///
    /// # Errors
    /// [`ConfigError`]; a missing file is an error too.
    pub fn load() -> Result<Loaded, ConfigError> {
        match std::env::var_os(PATH_ENV).filter(|path| !path.is_empty()) {
            Some(path) => Self::load_from(Path::new(&path)),
            None => Self::load_from(Path::new(DEFAULT_PATH)),
        }
    }

    /// Reads the file `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(path: &Path) -> Result<Loaded, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let document = Document {
            file: path,
            text: &text,
            warnings: RefCell::default(),
        };
        let config = document.read(Config::read)?;
        Ok(Loaded {
            config,
            path: path.to_owned(),
            warnings: document.warnings.into_inner(),
        })
    }
}
