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

use fc_host_file::{Access, HostFile, HostFileError};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_bind,
    mount_change, move_mount, unmount,
};
use rustix::process::chdir;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::in_root::directory_in_root;
use crate::layers::{Layer, Layers, identity};
use crate::loop_mount;
use crate::mkfs::{self, MkfsError};
use crate::several::Part;
use crate::sparse;

/// Most layers that overlayfs takes (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;
/// Directory in the private tmpfs at which the rootfs is put together from its parts, next to directories for
/// each of them.
const ROOTFS: &str = "rootfs";
/// Directory names in such a directory, next to the layers `0`, `1`, ...
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

    /// Writes an image of all `parts` to the existing file `output` (an absolute path).
    pub(crate) fn merge(&self, parts: &[Part], output: &Path) -> Result<(), MergeError> {
        let begin = Instant::now();
        with_rootfs(parts, &self.mount_point, |rootfs| {
            let holes = sparse::has_holes(rootfs).map_err(MergeError::Read)?;
            let mut command = mkfs::erofs(&self.program, holes, output, rootfs);
            Ok(mkfs::run_erofs(&mut command, rootfs)?)
        })?;
        tracing::info!(
            mounts = parts.len(),
            layers = parts
                .iter()
                .map(|part| part.layers.layers.len())
                .sum::<usize>(),
            milliseconds = begin.elapsed().as_millis(),
            "made an image of a container's layers"
        );
        Ok(())
    }
}

/// Mounts the rootfs that `parts` make up, read-only, for as long as `work` runs, which is told where: a
/// relative path that only `work`'s thread and its children have. `mount_point` is an existing directory.
pub(crate) fn with_rootfs<T: Send>(
    parts: &[Part],
    mount_point: &Path,
    work: impl FnOnce(&Path) -> Result<T, MergeError> + Send,
) -> Result<T, MergeError> {
    let mut counts = parts.iter().map(|part| part.layers.layers.len());
    if let Some(count) = counts.find(|count| *count > MAX_LAYERS) {
        return Err(MergeError::TooMany(count));
    }
    // Mounted by path, which only asks that nobody writes to them meanwhile.
    let layers = parts.iter().flat_map(|part| &part.layers.layers);
    let devices = layers.filter_map(|layer| match layer {
        Layer::Device(device) => Some(HostFile::open(&device.source, Access::Read)),
        _ => None,
    });
    let _locked: Vec<HostFile> = devices.collect::<Result<_, _>>()?;
    // A thread of its own, because a thread cannot leave a mount namespace's working directory behind.
    thread::scope(|scope| {
        thread::Builder::new()
            .name("merge".into())
            .spawn_scoped(scope, || {
                enter_namespace(mount_point).map_err(MergeError::Namespace)?;
                let done = add_parts(parts).and_then(|()| work(Path::new(ROOTFS)));
                leave_mounts(mount_point);
                done
            })
            .map_err(MergeError::Thread)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Gives this thread mounts of its own and an empty tmpfs as working directory.
fn enter_namespace(mount_point: &Path) -> io::Result<()> {
    // SAFETY: NEWNS leaves this thread's file descriptors shared and valid; what it takes away from
    // the process, a common working directory, no code of this thread relies on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    // What the host unmounts from now on shall not be kept alive here.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", mount_point, "tmpfs", flags, c"mode=0700")?;
    Ok(chdir(mount_point)?)
}

/// Unmounts everything, so that devices and images are free when the caller goes on: the namespace itself
/// ends some time after its thread.
fn leave_mounts(mount_point: &Path) {
    let left = chdir("/").and_then(|()| unmount(mount_point, UnmountFlags::DETACH));
    if let Err(error) = left {
        tracing::warn!(%error, "a container's layers stay mounted until their thread has ended");
    }
}

fn add_parts(parts: &[Part]) -> Result<(), MergeError> {
    fs::create_dir(ROOTFS).map_err(MergeError::Namespace)?;
    for (number, part) in parts.iter().enumerate() {
        add_part(&format!("part{number}"), part)?;
    }
    Ok(())
}

/// Mounts a part in a new directory called `name`, and moves it to its place in the rootfs, which is looked up
/// as if the rootfs were `/`: no link leads out of it.
fn add_part(name: &str, part: &Part) -> Result<(), MergeError> {
    let enter = |dir: &str| Ok(chdir(dir)?);
    fs::create_dir(name)
        .and_then(|()| enter(name))
        .map_err(MergeError::Namespace)?;
    mount_layers(&part.layers)?;
    enter("..").map_err(MergeError::Namespace)?;
    let place = || -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // What was mounted last, if there is something already.
        let rootfs = open(ROOTFS, flags, Mode::empty())?;
        let target = match part.target.as_str() {
            "" => rootfs,
            target => directory_in_root(&rootfs, Path::new(target))?,
        };
        let merged = Path::new(name).join(MERGED);
        Ok(move_mount(
            CWD,
            &merged,
            &target,
            "",
            MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
        )?)
    };
    place().map_err(|error| MergeError::Place(part.target.clone(), error))
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
                Layer::Device(device) => loop_mount::mount_device(device, Path::new(&name)),
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
    /// A device or image file among several mounts cannot be had.
    #[error("One of the rootfs's mounts cannot be read")]
    Device(#[from] HostFileError),
    /// The merged view cannot be mounted.
    #[error("The layers cannot be merged with overlayfs")]
    Overlay(#[source] io::Error),
    /// A mount's target, or the rootfs itself (empty).
    #[error("Nothing can be mounted at {0:?} in the rootfs; it must be a directory there")]
    Place(String, #[source] io::Error),
    /// The merged view cannot be read.
    #[error("The merged layers cannot be read")]
    Read(#[source] io::Error),
}

impl MergeError {
    /// Whether the layers as such cannot be merged, whatever is on the host.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::TooMany(_) => true,
            Self::Device(error) => error.is_refusal(),
            _ => false,
        }
    }
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
