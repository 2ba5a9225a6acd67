//! File operations whose errors name the file, and digests.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// An operation on one path failed.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {action} {}", path.display())]
pub struct Error {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Makes an [`Error`] of an [`io::Error`].
pub fn because(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error {
        action,
        path,
        source,
    }
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(because("read", path))
}

/// Writes a file with exactly these permissions, its directories included, whatever the umask.
pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    create_parent(path)?;
    fs::write(path, content).map_err(because("write", path))?;
    chmod(path, mode)
}

/// Sets permissions.
pub fn chmod(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(because("set the permissions of", path))
}

/// Creates a directory and those above it.
pub fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(because("create the directory", path))
}

fn create_parent(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), create_dir)
}

/// Creates a symbolic link, its directories included.
pub fn symlink(target: &Path, link: &Path) -> Result<(), Error> {
    create_parent(link)?;
    std::os::unix::fs::symlink(target, link).map_err(because("create the link", link))
}

/// Gives a file another name.
pub fn hard_link(file: &Path, link: &Path) -> Result<(), Error> {
    create_parent(link)?;
    fs::hard_link(file, link).map_err(because("create the link", link))
}

/// Renames within a file system.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(because("move a finished file to", to))
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(because("remove", path)(e)),
        _ => Ok(()),
    }
}

/// Names of a directory's entries, sorted.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut names = fs::read_dir(dir)
        .and_then(|entries| {
            entries
                .map(|e| e.map(|e| e.path()))
                .collect::<Result<Vec<_>, _>>()
        })
        .map_err(because("list", dir))?;
    names.sort();
    Ok(names)
}

/// The path without links, absolute.
pub fn canonical(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).map_err(because("find", path))
}

/// SHA-256 of some bytes, lower-case hex.
pub fn sha256(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// SHA-256 of a file's content, lower-case hex.
pub fn sha256_of(path: &Path) -> Result<String, Error> {
    read(path).map(|data| sha256(&data))
}
