//! The few things that are asked of ELF files: what machine they are for, how
//! they are linked, and what a kernel module says of itself.

use std::path::{Path, PathBuf};

use object::elf::{EM_AARCH64, EM_X86_64, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection};

/// A file is not the ELF file that it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No 64-bit ELF file.
    #[error("{} is not a 64-bit ELF file", path.display())]
    NotElf {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: object::Error,
    },
    /// For another processor than this machine's, which is also the guest's.
    #[error("{} is for another processor (ELF machine {machine}) than this machine's {}", path.display(), std::env::consts::ARCH)]
    OtherMachine {
        /// The file.
        path: PathBuf,
        /// `e_machine`.
        machine: u16,
    },
    /// A program that must run without a root file system needs a dynamic loader.
    #[error("{} needs the loader {}; build it statically linked", path.display(), loader.display())]
    Dynamic {
        /// The file.
        path: PathBuf,
        /// The loader it names.
        loader: PathBuf,
    },
}

/// The dynamic loader that a program for this machine names, `None` when it is static.
pub fn loader(path: &Path, data: &[u8]) -> Result<Option<PathBuf>, Error> {
    let not_elf = |source| Error::NotElf {
        path: path.to_owned(),
        source,
    };
    let header = FileHeader64::<Endianness>::parse(data).map_err(not_elf)?;
    let endian = header.endian().map_err(not_elf)?;
    let machine = header.e_machine(endian);
    let ours = if cfg!(target_arch = "aarch64") {
        EM_AARCH64
    } else {
        EM_X86_64
    };
    if machine != ours {
        return Err(Error::OtherMachine {
            path: path.to_owned(),
            machine: machine.0,
        });
    }
    for segment in header.program_headers(endian, data).map_err(not_elf)? {
        if let Some(name) = segment.interpreter(endian, data).map_err(not_elf)? {
            return Ok(Some(PathBuf::from(
                String::from_utf8_lossy(name).into_owned(),
            )));
        }
    }
    Ok(None)
}

/// Makes sure that a program runs without libraries.
pub fn require_static(path: &Path, data: &[u8]) -> Result<(), Error> {
    match loader(path, data)? {
        Some(loader) => Err(Error::Dynamic {
            path: path.to_owned(),
            loader,
        }),
        None => Ok(()),
    }
}

/// Bytes of memory that an ELF kernel occupies once loaded; the size of `data` for an arm64 Image.
pub fn loaded_size(data: &[u8]) -> u64 {
    let size = || {
        let header = FileHeader64::<Endianness>::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, data).ok()?;
        let loaded = segments
            .iter()
            .filter(|s| s.p_type(endian) == object::elf::PT_LOAD);
        Some(loaded.map(|s| s.p_memsz(endian)).sum())
    };
    size().unwrap_or(data.len() as u64)
}

/// The `key=value` strings of a kernel module's `.modinfo` section.
pub fn modinfo(path: &Path, data: &[u8]) -> Result<Vec<String>, Error> {
    let not_elf = |source| Error::NotElf {
        path: path.to_owned(),
        source,
    };
    let file = object::read::elf::ElfFile64::<Endianness>::parse(data).map_err(not_elf)?;
    let Some(section) = file.section_by_name(".modinfo") else {
        return Ok(Vec::new());
    };
    let strings = section.data().map_err(not_elf)?;
    Ok(strings
        .split(|&b| b == 0)
        .filter(|s| !s.is_empty())
        .map(|s| String::from_utf8_lossy(s).into_owned())
        .collect())
}
