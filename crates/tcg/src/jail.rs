//! What a jail must show us: Firecracker needs nothing but its own file, QEMU needs libraries and firmware.
//!
//! `firecracker-tcg --print-jail-paths > firecracker-tcg.jail.json`, run where the program is installed and again
//! when QEMU is upgraded, tells it to whoever makes jails.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Serialize;

use crate::qemu::{self, QEMU_VARIABLE, QemuError};

/// Firmware, and what loads the two kinds of kernel.
const FIRMWARE: [&str; 3] = ["qboot.rom", "linuxboot_dma.bin", "pvh.bin"];

/// Where the dynamic linker finds libraries that are in no standard directory.
const LINKER_CACHE: &str = "/etc/ld.so.cache";

/// The content of `firecracker-tcg.jail.json`. A jail shows each path under the same name; a link by what it leads to.
///
/// Beside that it needs a working directory that it may write to, and nothing else: neither `/proc` nor `/tmp`, no
/// capabilities, no privileges to gain.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct JailPaths {
    /// Files, to be read and executed only.
    pub read_only_paths: Vec<PathBuf>,
    /// Devices, to be read and written: the null device, and the one that tap devices are had from, which only
    /// VMs with network interfaces need.
    pub devices: Vec<PathBuf>,
    /// What the program must find in its environment, or it looks for another QEMU.
    pub environment: BTreeMap<&'static str, PathBuf>,
}

/// Why the paths cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// There is no QEMU.
    #[error("{0}")]
    Qemu(#[from] QemuError),
    /// QEMU, or this program itself, cannot be run.
    #[error("Cannot run {path}: {error}", path = path.display())]
    Run {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A shared library of QEMU's is not installed.
    #[error("QEMU's library {0} is not found: install QEMU's package anew")]
    Library(String),
    /// QEMU does not find its firmware either.
    #[error(
        "QEMU's file {name} is in none of its directories {directories:?}: install QEMU's firmware (Debian: \
         package qemu-system-data)"
    )]
    Firmware {
        /// The file.
        name: &'static str,
        /// Where QEMU looks.
        directories: Vec<PathBuf>,
    },
}

/// Asks QEMU and the dynamic linker what QEMU opens.
///
/// # Errors
/// QEMU is missing, cannot be run, or is not whole.
pub fn paths() -> Result<JailPaths, JailError> {
    let program = qemu::find()?;
    let mut read_only_paths = vec![program.clone()];
    // Where this program is put is for the jail to say; it needs libraries only if it was not linked as released.
    let this = env::current_exe().map_err(|error| JailError::Run {
        path: "/proc/self/exe".into(),
        error,
    })?;
    for linked in [&program, &this] {
        for library in libraries(&linked_objects(linked)?)? {
            if !read_only_paths.contains(&library) {
                read_only_paths.push(library);
            }
        }
    }
    let cache = PathBuf::from(LINKER_CACHE);
    if cache.exists() {
        read_only_paths.push(cache);
    }
    let directories = output(Command::new(&program).args(["-L", "help"]))?;
    let directories: Vec<_> = directories.lines().map(PathBuf::from).collect();
    for name in FIRMWARE {
        read_only_paths.push(firmware(name, &directories)?);
    }
    Ok(JailPaths {
        read_only_paths,
        devices: vec!["/dev/null".into(), "/dev/net/tun".into()],
        environment: BTreeMap::from([(QEMU_VARIABLE, program)]),
    })
}

/// The linker lists what it would load, by the names under which it looks, and runs nothing. Without a linker the
/// program runs, and only tells its version.
fn linked_objects(program: &Path) -> Result<String, JailError> {
    let mut command = Command::new(program);
    output(command.arg("--version").env("LD_TRACE_LOADED_OBJECTS", "1"))
}

fn output(command: &mut Command) -> Result<String, JailError> {
    let output = command.output().map_err(|error| JailError::Run {
        path: command.get_program().into(),
        error,
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The files in lines such as `libz.so.1 => /lib/libz.so.1 (0x7f00)` and `/lib64/ld.so.2 (0x7f00)`.
fn libraries(linked: &str) -> Result<Vec<PathBuf>, JailError> {
    let mut libraries = Vec::new();
    for line in linked.lines() {
        let (name, found) = line.split_once(" => ").unwrap_or(("", line));
        if found.trim_start().starts_with("not found") {
            return Err(JailError::Library(name.trim().to_owned()));
        }
        let path = found
            .rsplit_once(" (")
            .map_or(found, |(path, _)| path)
            .trim();
        // The kernel's own library has no file.
        if path.starts_with('/') {
            libraries.push(path.into());
        }
    }
    Ok(libraries)
}

fn firmware(name: &'static str, directories: &[PathBuf]) -> Result<PathBuf, JailError> {
    directories
        .iter()
        .map(|directory| directory.join(name))
        .find(|path| Path::exists(path))
        .ok_or_else(|| JailError::Firmware {
            name,
            directories: directories.to_vec(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_list() {
        let list = "\tlinux-vdso.so.1 (0x00007fa6)\n\tlibz.so.1 => /lib/libz.so.1 (0x00007fa6)\n\t/lib64/ld.so.2 (0x1)\n";
        let paths: [PathBuf; 2] = ["/lib/libz.so.1".into(), "/lib64/ld.so.2".into()];
        assert_eq!(libraries(list).unwrap(), paths);
        assert!(
            libraries("QEMU emulator version 10.0.2\n")
                .unwrap()
                .is_empty(),
            "a static QEMU needs none"
        );
        assert_eq!(
            libraries("\tliby.so.1 => not found\n")
                .unwrap_err()
                .to_string(),
            "QEMU's library liby.so.1 is not found: install QEMU's package anew"
        );
    }

    #[test]
    fn firmware_is_looked_for_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pvh.bin");
        std::fs::write(&path, "").unwrap();
        let directories = ["/nonexistent".into(), directory.path().to_owned()];
        assert_eq!(firmware("pvh.bin", &directories).unwrap(), path);
        assert!(firmware("linuxboot_dma.bin", &directories).is_err());
    }
}
