//! The image directory: one writer at a time, never half of an image.
//!
//! Everything is made in a directory of its own below the image directory and
//! moved into place at the end, the manifest last. Between the removal of the
//! old manifest and the new one's arrival the directory counts as incomplete.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use fc_proto::image::{FileInfo, INITRD, KERNEL, MANIFEST, Manifest, ROOTFS};
use rustix::fs::{FlockOperation, flock};

use crate::{file, inputs};

/// The image directory cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] file::Error),
    /// The manifest is damaged.
    #[error("{} is not a manifest that this version can read", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// The manifest is of another version.
    #[error("{} has format {format}; this version reads {}", path.display(), Manifest::FORMAT)]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// A file is not the one that the manifest describes.
    #[error("{} is damaged or from another build: {what} differs from the manifest", path.display())]
    Differs {
        /// The file.
        path: PathBuf,
        /// `size` or `content`.
        what: &'static str,
    },
}

/// An image directory that this process may write.
#[derive(Debug)]
pub struct Output {
    dir: PathBuf,
    /// The lock is held as long as this is open.
    _lock: File,
}

/// What the manifest says beyond the files.
#[derive(Debug)]
pub struct Description {
    /// See [`Manifest::kernel_release`].
    pub kernel_release: String,
    /// See [`Manifest::min_memory_mib`].
    pub min_memory_mib: u32,
    /// See [`Manifest::request`].
    pub request: BTreeMap<String, String>,
    /// See [`Manifest::inputs`].
    pub inputs: BTreeMap<String, String>,
}

const FILES: [&str; 3] = [KERNEL, INITRD, ROOTFS];
const WORK_PREFIX: &str = ".build-";

impl Output {
    /// Creates the directory, waits until no other build writes to it, and clears
    /// away what a killed one left.
    pub fn lock(dir: &Path) -> Result<Self, Error> {
        file::create_dir(dir)?;
        let path = dir.join(".lock");
        let lock = File::create(&path).map_err(file::because("create", &path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| file::because("lock", &path)(e.into()))?;
        for path in file::list(dir)? {
            if path
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(WORK_PREFIX))
            {
                std::fs::remove_dir_all(&path).map_err(file::because("remove", &path))?;
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// Whether the directory is complete and was made for the same request from the same inputs.
    pub fn is_current(&self, request: &BTreeMap<String, String>) -> bool {
        let Ok(manifest) = read_manifest(&self.dir) else {
            return false;
        };
        manifest.request == *request
            && manifest
                .files
                .iter()
                .all(|(name, info)| check_size(&self.dir, name, info).is_ok())
            && inputs::unchanged(&manifest.inputs)
    }

    /// A directory to build in, removed when dropped.
    pub fn work_dir(&self) -> Result<tempfile::TempDir, Error> {
        let new = tempfile::Builder::new()
            .prefix(WORK_PREFIX)
            .tempdir_in(&self.dir);
        Ok(new.map_err(file::because("create a directory in", &self.dir))?)
    }

    /// Replaces the directory's files by those in `work`. One that `work` lacks is removed.
    pub fn publish(&self, work: &tempfile::TempDir, about: Description) -> Result<(), Error> {
        let work = work.path();
        let mut files = BTreeMap::new();
        for name in FILES.iter().filter(|name| work.join(name).exists()) {
            let data = file::read(&work.join(name))?;
            let info = FileInfo {
                size: data.len() as u64,
                sha256: file::sha256(&data),
            };
            files.insert((*name).to_owned(), info);
        }
        let manifest = Manifest {
            format: Manifest::FORMAT,
            builder: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: fc_proto::guest::PROTOCOL,
            kernel_release: about.kernel_release,
            min_memory_mib: about.min_memory_mib,
            files,
            request: about.request,
            inputs: about.inputs,
        };
        let path = self.dir.join(MANIFEST);
        let mut text = serde_json::to_vec_pretty(&manifest).map_err(|source| Error::Manifest {
            path: path.clone(),
            source,
        })?;
        text.push(b'\n');
        file::write(&work.join(MANIFEST), &text, 0o644)?;

        file::remove(&path)?;
        for name in FILES {
            if manifest.files.contains_key(name) {
                file::rename(&work.join(name), &self.dir.join(name))?;
            } else {
                file::remove(&self.dir.join(name))?;
            }
        }
        Ok(file::rename(&work.join(MANIFEST), &path)?)
    }
}

/// Reads a directory's manifest.
pub fn read_manifest(dir: &Path) -> Result<Manifest, Error> {
    let path = dir.join(MANIFEST);
    let text = file::read(&path)?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|source| Error::Manifest {
        path: path.clone(),
        source,
    })?;
    if manifest.format != Manifest::FORMAT {
        return Err(Error::Format {
            path,
            format: manifest.format,
        });
    }
    Ok(manifest)
}

/// Makes sure that every file is the one that the manifest describes.
pub fn verify(dir: &Path, manifest: &Manifest) -> Result<(), Error> {
    for (name, info) in &manifest.files {
        check_size(dir, name, info)?;
        let path = dir.join(name);
        if file::sha256_of(&path)? != info.sha256 {
            return Err(Error::Differs {
                path,
                what: "content",
            });
        }
    }
    Ok(())
}

fn check_size(dir: &Path, name: &str, info: &FileInfo) -> Result<(), Error> {
    let path = dir.join(name);
    let size = std::fs::metadata(&path)
        .map_err(file::because("read", &path))?
        .len();
    if size == info.size {
        Ok(())
    } else {
        Err(Error::Differs { path, what: "size" })
    }
}
