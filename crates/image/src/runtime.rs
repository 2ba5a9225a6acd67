//! The OCI runtime and the shared libraries that it needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{elf, file, tool};

/// The runtime cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A library is not on this machine, so that the runtime would not start in the guest either.
    #[error("{} needs the library {library}, which is not installed here", runtime.display())]
    NoLibrary {
        /// The runtime.
        runtime: PathBuf,
        /// The library's name.
        library: String,
    },
    /// The runtime is no program for this machine.
    #[error(transparent)]
    Elf(#[from] elf::Error),
    /// Its loader failed.
    #[error("Cannot find out which libraries {} needs", runtime.display())]
    Loader {
        /// The runtime.
        runtime: PathBuf,
        /// Why.
        source: tool::Error,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] file::Error),
}

/// Paths of the loader and of all libraries that the program `data` at
/// `runtime` loads, without duplicates. Empty for a static one.
///
/// Asks the program's own loader, so that rpath, the linker cache and other C
/// libraries are treated as they are when it runs.
pub fn libraries(runtime: &Path, data: &[u8]) -> Result<Vec<PathBuf>, Error> {
    let Some(loader) = elf::loader(runtime, data)? else {
        return Ok(Vec::new());
    };
    let list = tool::run(Command::new(&loader).arg("--list").arg(runtime)).map_err(|source| {
        Error::Loader {
            runtime: runtime.to_owned(),
            source,
        }
    })?;
    let mut paths = vec![loader];
    for line in list.lines() {
        match library(line) {
            Some(Ok(path)) if !paths.contains(&path) => paths.push(path),
            Some(Err(library)) => {
                return Err(Error::NoLibrary {
                    runtime: runtime.to_owned(),
                    library,
                });
            }
            _ => {}
        }
    }
    Ok(paths)
}

/// The path in a line of the loader's list; the name of a library it did not
/// find; `None` for what has no file (the vdso).
fn library(line: &str) -> Option<Result<PathBuf, String>> {
    let line = line.trim();
    let target = match line.split_once(" => ") {
        Some((name, target)) if target.starts_with("not found") => {
            return Some(Err(name.to_owned()));
        }
        Some((_, target)) => target,
        None => line,
    };
    let path = target.split(" (0x").next()?;
    path.starts_with('/').then(|| Ok(PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_loader_s_list() {
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ff2c200d000)"), None);
        assert_eq!(
            library("\tlibcap.so.2 => /lib/x86_64-linux-gnu/libcap.so.2 (0x00007ff2c1e88000)"),
            Some(Ok(PathBuf::from("/lib/x86_64-linux-gnu/libcap.so.2")))
        );
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x00007ff2c200f000)"),
            Some(Ok(PathBuf::from("/lib64/ld-linux-x86-64.so.2")))
        );
        assert_eq!(
            library("\tlibx.so => not found"),
            Some(Err("libx.so".to_owned()))
        );
    }

    #[test]
    fn libraries_of_a_real_program() {
        let Ok(runtime) = tool::find("crun", "crun") else {
            println!("SKIPPED: no crun on this machine");
            return;
        };
        let libraries = libraries(&runtime, &file::read(&runtime).unwrap()).unwrap();
        assert!(libraries.iter().all(|l| l.is_file()), "{libraries:?}");
    }
}
