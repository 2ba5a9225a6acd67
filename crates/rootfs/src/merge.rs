//! Many layers become one read-only EROFS image.
//!
//! The kernel's own overlayfs does the merging, so that whiteouts, opaque
//! directories, hard links, extended attributes and all the rest come out as they
//! would in a container of the host. It is mounted in a mount namespace that only
//! one thread and its `mkfs.erofs` have: no other process sees the mounts, and
//! they vanish with the two, however they end.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::process::chdir;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::layers::{Layer, Layers, identity};
use crate::loop_mount;
use crate::mkfs::{self, MkfsError};
use crate::sparse;

/// Most layers that overlayfs takes (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;
/// Directory names in the private tmpfs, next to the layers `0`, `1`, ...
const MERGED: &str = "merged";
const EMPTY: &str = "empty";

/// Makes images with `mkfs.erofs`.
#[derive(Debug)]
pub(crate) struct Merger {
    program: PathBuf,
    identity: String,
    mount_point: PathBuf,
}

impl Merger {
    /// `program` is a path or a name to look up in PATH; `mount_point` an existing directory.
    pub(crate) fn new(program: &Path, mount_point: &Path) -> Result<Merger, MergeError> {
        let program = mkfs::find(program, "erofs-utils")?;
        let unreadable = |error| MkfsError::Program(program.clone(), error);
        // The file's identity stands for its version: asking it would cost a process each time.
        let metadata = fs::metadata(&program).map_err(unreadable)?;
        let identity = format!(
            "{} {} {}.{}",
            identity(&program).map_err(unreadable)?,
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec()
        );
        Ok(Merger {
            program,
            identity,
            mount_point: mount_point.into(),
        })
    }

    /// Changes when the program does.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// Writes an image of `layers` to the existing file `output` (an absolute path).
    pub(crate) fn merge(&self, layers: &Layers, output: &Path) -> Result<(), MergeError> {
        let count = layers.layers.len();
        if count > MAX_LAYERS {
            return Err(MergeError::TooMany(count));
        }
        let begin = Instant::now();
        // A thread of its own, because a thread cannot leave a mount namespace's working directory behind.
        thread::scope(|scope| {
            thread::Builder::new()
                .name("merge".into())
                .spawn_scoped(scope, || self.merge_on_this_thread(layers, output))
                .map_err(MergeError::Thread)?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        tracing::info!(
            layers = count,
            milliseconds = begin.elapsed().as_millis(),
            "made an image of a container's layers"
        );
        Ok(())
    }

    fn merge_on_this_thread(&self, layers: &Layers, output: &Path) -> Result<(), MergeError> {
        self.enter_namespace().map_err(MergeError::Namespace)?;
        mount_layers(layers)?;
        let holes = sparse::has_holes(Path::new(MERGED)).map_err(MergeError::Read)?;
        Ok(mkfs::run(&mut mkfs::erofs(
            &self.program,
            holes,
            output,
            Path::new(MERGED),
        ))?)
    }

    /// Gives this thread mounts of its own and an empty tmpfs as working directory.
    fn enter_namespace(&self) -> io::Result<()> {
        // SAFETY: NEWNS leaves this thread's file descriptors shared and valid; what it takes away from
        // the process, a common working directory, no code of this thread relies on.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        // What the host unmounts from now on shall not be kept alive here.
        mount_change(
            "/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tmpfs", &self.mount_point, "tmpfs", flags, c"mode=0700")?;
        Ok(chdir(&self.mount_point)?)
    }
}

/// Mounts each layer in the working directory, under a short name without
/// special characters (mount(2) takes one page of options), and the merged view.
fn mount_layers(layers: &Layers) -> Result<(), MergeError> {
    let mut names = Vec::with_capacity(layers.layers.len() + 1);
    for (number, layer) in layers.layers.iter().enumerate() {
        let name = number.to_string();
        fs::create_dir(&name)
            .and_then(|()| match layer {
                Layer::Directory(path) => Ok(mount_bind(path, &name)?),
                Layer::Erofs(path) => loop_mount::mount_read_only(path, "erofs", Path::new(&name)),
            })
            .map_err(|error| MergeError::MountLayer(layer.path().into(), error))?;
        names.push(name);
    }
    let mut overlay = || -> io::Result<()> {
        fs::create_dir(MERGED)?;
        if names.len() == 1 {
            // Overlayfs wants two layers to be read-only, and it must be overlayfs: it hides its own attributes.
            fs::create_dir(EMPTY)?;
            names.push(EMPTY.into());
        }
        let mut options = format!("lowerdir={}", names.join(":"));
        for option in &layers.options {
            options.push(',');
            options.push_str(option);
        }
        let options = std::ffi::CString::new(options)?;
        Ok(mount(
            "overlay",
            MERGED,
            "overlay",
            MountFlags::RDONLY,
            options.as_c_str(),
        )?)
    };
    overlay().map_err(MergeError::Overlay)
}

/// Why an image could not be made of layers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// mkfs.erofs is missing or failed.
    #[error(transparent)]
    Mkfs(#[from] MkfsError),
    /// More layers than the kernel merges; holds their number.
    #[error(
        "The rootfs has {0} layers; overlayfs merges at most {MAX_LAYERS}, so the image has to be flattened"
    )]
    TooMany(usize),
    /// No thread.
    #[error("A thread cannot be started")]
    Thread(#[source] io::Error),
    /// No mount namespace, or nothing can be mounted in it.
    #[error("A mount namespace for merging layers cannot be made; this needs root (CAP_SYS_ADMIN)")]
    Namespace(#[source] io::Error),
    /// One layer cannot be mounted.
    #[error("The layer {0:?} cannot be mounted")]
    MountLayer(PathBuf, #[source] io::Error),
    /// The merged view cannot be mounted.
    #[error("The layers cannot be merged with overlayfs")]
    Overlay(#[source] io::Error),
    /// The merged view cannot be read.
    #[error("The merged layers cannot be read")]
    Read(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_what_to_install() {
        let error = Merger::new(Path::new("mkfs.erofs-nowhere"), Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("install erofs-utils"));
    }
}
