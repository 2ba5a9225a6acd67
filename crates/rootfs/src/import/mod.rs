//! Brings what a container wrote in its VM back to the snapshot's upper directory.
//!
//! The stream comes from the guest, which is not trusted. It is unpacked into a new directory beside the
//! upper one, reached by no other name than names beneath it, and only when all of it has arrived the two
//! change places: whatever goes wrong, the snapshot is as it was.

mod header;
mod pax;
mod tar;
mod unpack;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

pub use tar::TarError;
use unpack::Unpacker;

/// Begin of the names of unfinished directories, beside the upper one.
const UNFINISHED: &str = ".write-back.";
/// Names of skipped things that are told; the others are only counted.
const MAX_SKIPPED: usize = 100;
/// Bytes of such a name, with the reason, that are told: `PATH_MAX` and as much again.
const MAX_TOLD: usize = 8192;

/// What was brought back.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Files, directories, links and whiteouts.
    pub entries: u64,
    /// Bytes of data in files.
    pub bytes: u64,
    /// How many entries and attributes were left out, because a snapshot has no use for them.
    pub skipped: u64,
    /// The first hundred of them, each with the reason.
    pub first_skipped: Vec<String>,
}

impl Imported {
    fn skip(&mut self, path: &[u8], why: &str) {
        self.skipped += 1;
        if self.first_skipped.len() < MAX_SKIPPED {
            let path = String::from_utf8_lossy(path);
            let mut told = format!("{path}: {why}");
            told.truncate(told.floor_char_boundary(MAX_TOLD));
            told.shrink_to_fit();
            self.first_skipped.push(told);
        }
    }
}

/// Replaces the content of the directory `upper` of a snapshot, which is not mounted anywhere, by that of a
/// tar stream in overlayfs' own format: whiteouts are character devices 0/0, opaque directories have the
/// attribute `trusted.overlay.opaque`. Blocks until the archive's end.
///
/// `limit` is the most bytes of data to accept, and the most bytes of everything else (headers, names,
/// attributes): the size of the disk that the container wrote to. Devices other than whiteouts, FIFOs, sockets
/// and labels of the guest's security modules are skipped, but count. Memory grows with the depth of the
/// directories, not with their number.
///
/// # Errors
/// When the stream is malformed, names anything outside of the directory or is too large, or writing
/// fails. `upper` is unchanged then.
pub fn import_upper(tar: impl Read, upper: &Path, limit: u64) -> Result<Imported, ImportError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |error| ImportError::File {
            action,
            path,
            error,
        }
    };
    let (Some(parent), Some(name)) = (upper.parent(), upper.file_name()) else {
        return Err(ImportError::NoDirectory(upper.to_owned()));
    };
    if !fs::symlink_metadata(upper).is_ok_and(|found| found.is_dir()) {
        return Err(ImportError::NoDirectory(upper.to_owned()));
    }
    sweep(parent, name).map_err(failed("clean", parent))?;
    let fresh = tempfile::Builder::new()
        .prefix(&unfinished(name))
        .tempdir_in(parent)
        .map_err(failed("make a directory in", parent))?;
    let imported = Unpacker::new(fresh.path(), limit)?.unpack(tar)?;
    renameat_with(CWD, fresh.path(), CWD, upper, RenameFlags::EXCHANGE)
        .map_err(|error| failed("replace", upper)(error.into()))?;
    // What the snapshot had before. That it stays is no reason to call the import failed.
    if let Err(error) = fresh.close() {
        tracing::warn!(snapshot = %upper.display(), %error, "a snapshot's former content stays beside it");
    }
    Ok(imported)
}

/// Reads a whole stream and makes nothing of it, for fuzz targets: how many bytes its entries' headers and data
/// take, as they are counted against the limit. Only with the feature `fuzzing`.
///
/// # Errors
/// When the stream is malformed.
#[cfg(feature = "fuzzing")]
pub fn read_for_fuzzing(tar: impl Read) -> Result<(u64, u64), TarError> {
    let mut reader = tar::Reader::new(tar);
    let (mut headers, mut data) = (0, 0);
    while reader.next()?.is_some() {
        headers += reader.headers();
        loop {
            match reader.data(&mut [0; 4096])? {
                0 => break,
                count => data += count as u64,
            }
        }
    }
    Ok((headers, data))
}

/// Begin of the names of unfinished directories of `upper`, and of none of another one beside it.
fn unfinished(upper: &OsStr) -> OsString {
    [OsStr::new(UNFINISHED), upper, OsStr::new(".")]
        .into_iter()
        .collect()
}

/// Removes what imports that were killed left.
fn sweep(parent: &Path, upper: &OsStr) -> io::Result<()> {
    let prefix = unfinished(upper);
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        if name
            .as_encoded_bytes()
            .starts_with(prefix.as_encoded_bytes())
        {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Why nothing was brought back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The upper directory is none.
    #[error("The snapshot's upper directory {0:?} does not exist or is no directory")]
    NoDirectory(PathBuf),
    /// The stream.
    #[error("The guest sent something other than what the container wrote")]
    Tar(#[from] TarError),
    /// A path that leads elsewhere.
    #[error("The guest sent the path {path:?}, {why}")]
    Path {
        /// As sent, made readable.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More data than the container's disk can hold.
    #[error("The guest sent more than the {limit} {what} that the container's disk can hold")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: u64,
    },
    /// An entry cannot be made.
    #[error("Cannot {action} {path:?} in the snapshot")]
    Entry {
        /// What was tried.
        action: &'static str,
        /// As sent, made readable.
        path: String,
        /// Why it failed.
        #[source]
        error: io::Error,
    },
    /// A directory of the host's.
    #[error("Cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        error: io::Error,
    },
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
