//! `volume-init`: copies directories of a container's image to where other containers of the VM see them.
//!
//! The same program file as the agent, called by another name; a container of the image runs it, with
//! the guest's `/usr/local/bin` and `/volumes` mounted. What to copy comes as JSON on standard input; a failure
//! goes as JSON to standard output and makes the status 1, or 2 when it cannot be told
//! (`volume/cmd/volume-init` of the original).

mod copy;

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use fc_errors::chain;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, mkdirat};
use serde::{Deserialize, Serialize};

use copy::Copier;

/// The name by which it is called.
const NAME: &str = "volume-init";
/// Bytes of input that are read.
const MAX_INPUT: u64 = 1 << 20;

/// What to do, as it comes on standard input.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Input {
    /// Directory below which the volumes are.
    from: PathBuf,
    /// Directory below which the copies go; made with those above it, mode 0700.
    to: PathBuf,
    /// Paths below both. A Go client sends an empty list as `null`.
    volumes: Option<Vec<PathBuf>>,
}

/// The answer if something failed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    error: String,
}

/// Why a volume was not copied.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("Cannot read what to copy from standard input")]
    Input(#[source] io::Error),
    #[error("Standard input is no JSON object with From, To and Volumes")]
    Json(#[from] serde_json::Error),
    #[error("{0:?} is not an absolute path")]
    Relative(PathBuf),
    #[error("The volume {0:?} names no directory inside the image")]
    Root(PathBuf),
    #[error("Cannot open the directory {path:?} below {root:?}")]
    Open {
        root: PathBuf,
        path: PathBuf,
        #[source]
        error: Errno,
    },
    #[error("Cannot make the directory {path:?}")]
    Make {
        path: PathBuf,
        #[source]
        error: io::Error,
    },
    #[error("Cannot copy the volume {volume:?}")]
    Copy {
        volume: PathBuf,
        #[source]
        error: copy::CopyError,
    },
}

/// Whether a program called `name` (its first argument) is this one.
#[must_use]
pub fn is_called(name: &OsStr) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(NAME))
}

/// Does what standard input says; gives the exit status.
#[must_use]
pub fn run() -> i32 {
    let Err(error) = read().and_then(|input| copy_all(&input)) else {
        return 0;
    };
    let output = Output {
        error: chain(&error),
    };
    let told = serde_json::to_vec(&output)
        .map_err(io::Error::other)
        .and_then(|json| io::stdout().write_all(&json));
    match told {
        Ok(()) => 1,
        Err(error) => {
            eprintln!("{NAME}: {}: cannot be told: {error}", output.error);
            2
        }
    }
}

fn read() -> Result<Input, Error> {
    let mut json = Vec::new();
    io::stdin()
        .take(MAX_INPUT)
        .read_to_end(&mut json)
        .map_err(Error::Input)?;
    Ok(serde_json::from_slice(&json)?)
}

fn copy_all(input: &Input) -> Result<(), Error> {
    for path in [&input.from, &input.to] {
        if !path.is_absolute() {
            return Err(Error::Relative(path.clone()));
        }
    }
    for volume in input.volumes.iter().flatten() {
        let names = names(volume);
        if names.is_empty() {
            return Err(Error::Root(volume.clone()));
        }
        let opened = |error| Error::Open {
            root: input.from.clone(),
            path: volume.clone(),
            error,
        };
        let from = open(&input.from, DIRECTORY, Mode::empty())
            .and_then(|root| in_root(&root, volume))
            .map_err(opened)?;
        let to = make(&input.to, &names)?;
        Copier::default()
            .copy(&from, &to)
            .map_err(|error| Error::Copy {
                volume: volume.clone(),
                error,
            })?;
    }
    Ok(())
}

const DIRECTORY: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

fn beneath(how: ResolveFlag) -> OpenHow {
    OpenHow::new()
        .flags(DIRECTORY)
        .resolve(how | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// The directory at `path`, which links in it do not lead out of `root`.
fn in_root(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    loop {
        match openat2(root, path, beneath(ResolveFlag::RESOLVE_IN_ROOT)) {
            // Something was renamed or mounted while a `..` was followed, and the kernel wants to be asked again.
            Err(Errno::EAGAIN) => {}
            result => return result,
        }
    }
}

/// The components of `path` below a root, which `..` does not leave.
fn names(path: &Path) -> Vec<&OsStr> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                names.pop();
            }
            _ => {}
        }
    }
    names
}

/// Makes the directory `names` below `root`, each of mode 0700 if it is new. Links are not followed: what
/// is there may be another volume's content.
fn make(root: &Path, names: &[&OsStr]) -> Result<std::os::fd::OwnedFd, Error> {
    let mut path = root.to_owned();
    let failed = |path: &Path, error| Error::Make {
        path: path.to_owned(),
        error,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .map_err(|error| failed(root, error))?;
    let mut dir =
        open(root, DIRECTORY, Mode::empty()).map_err(|error| failed(root, error.into()))?;
    for name in names {
        path.push(name);
        match mkdirat(&dir, *name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed(&path, error.into())),
        }
        let how = beneath(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        dir = openat2(&dir, *name, how).map_err(|error| failed(&path, error.into()))?;
    }
    Ok(dir)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
