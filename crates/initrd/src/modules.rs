//! Loads the kernel modules that the initrd carries.
//!
//! `/modules/order` has one module per line, in load order: a path relative to `/modules` (or an
//! absolute one), then optional parameters separated by blanks. Lines that are empty or start
//! with `#` are skipped; no such file means that the kernel has everything built in.

use std::ffi::CString;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::init_module;

const DIR: &str = "/modules";

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    #[error("Cannot read {DIR}/order")]
    Order(#[source] io::Error),
    #[error("Cannot read module {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("The kernel refused module {path} (was the initrd made for this kernel?)")]
    Load {
        path: PathBuf,
        #[source]
        source: Errno,
    },
}

/// Loads every listed module.
pub(crate) fn load_all() -> Result<(), ModuleError> {
    let order = match std::fs::read_to_string(Path::new(DIR).join("order")) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(ModuleError::Order(e)),
    };
    parse(&order).try_for_each(|(path, parameters)| load(path, parameters))
}

fn parse(order: &str) -> impl Iterator<Item = (PathBuf, &str)> {
    order
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (path, parameters) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            (Path::new(DIR).join(path), parameters.trim())
        })
}

fn load(path: PathBuf, parameters: &str) -> Result<(), ModuleError> {
    let image = match std::fs::read(&path) {
        Ok(image) => image,
        Err(source) => return Err(ModuleError::Read { path, source }),
    };
    // A line of text has no NUL unless the file is damaged; the module then gets no parameters.
    let parameters = CString::new(parameters).unwrap_or_default();
    // Not finit_module: the kernel closes the files that it unpacked in the background, and until
    // then refuses to execute or load them (ETXTBSY).
    match init_module(&image, &parameters) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(source) => Err(ModuleError::Load { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_has_paths_parameters_and_comments() {
        let order = "# first\nvirtio.ko\n\n /x/y.ko  a=1 b=2 \n";
        let parsed: Vec<_> = parse(order).collect();
        assert_eq!(
            parsed,
            [
                (PathBuf::from("/modules/virtio.ko"), ""),
                (PathBuf::from("/x/y.ko"), "a=1 b=2"),
            ]
        );
    }
}
