//! What would make a boot fail, found before anything is started: files that are not there, or in use elsewhere.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fc_host_file::{Access, Found, HostFile, HostFileError};

use super::spec::{VmSpec, drive_mount_field};

/// Offset and content of the boot protocol's magic in an x86 bzImage.
const BZIMAGE_MAGIC: (usize, &[u8]) = (0x202, b"HdrS");
/// Offset and content of the magic in an arm64 Image.
const ARM64_MAGIC: (usize, &[u8]) = (0x38, b"ARM\x64");
const ELF_MAGIC: (usize, &[u8]) = (0, b"\x7fELF");
/// Enough of a kernel to see every magic.
const HEAD: usize = 1024;

/// Why a VM cannot boot on this host.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// A file that the VM is made of is none, cannot be opened, or is in use.
    #[error("The {what} cannot be used{}", advice(*what, source))]
    File {
        /// Which file.
        what: What,
        /// Why; names the file.
        source: HostFileError,
    },
    /// A file that the VM is made of cannot be read.
    #[error("The {what} {} cannot be read", path.display())]
    Read {
        /// Which file.
        what: What,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the VM is empty or holds something else.
    #[error("The {what} {} cannot be used: {why}", path.display())]
    WrongFile {
        /// Which file.
        what: What,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// The host has less free memory than the guest is to get.
    #[error(
        "The VM is to have {asked} MiB of memory, but the host has only {available} MiB available"
    )]
    HostMemory {
        /// MiB asked for.
        asked: u64,
        /// MiB available (MemAvailable).
        available: u64,
    },
    /// The thread that did the work ended early: it panicked, or the runtime is shutting down.
    #[error("Checking the VM's files was stopped")]
    Stopped(#[source] tokio::task::JoinError),
}

impl PreflightError {
    /// Whether the request names what can never be a drive, whatever becomes of the host.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::File { what: What::DriveMount(_), source } if source.is_refusal())
    }
}

/// A file that a VM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Config's `kernel_image_path` or the request's.
    Kernel,
    /// Config's `initrd_path`.
    Initrd,
    /// Config's `root_drive` or the request's.
    RootImage,
    /// The request's drive mount of this index.
    DriveMount(usize),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kernel => f.write_str("kernel"),
            Self::Initrd => f.write_str("initrd"),
            Self::RootImage => f.write_str("root image"),
            Self::DriveMount(index) => write!(f, "{}.HostPath", drive_mount_field(*index)),
        }
    }
}

fn advice(what: What, error: &HostFileError) -> &'static str {
    let HostFileError::Open { source, .. } = error else {
        return "";
    };
    match (source.kind(), what) {
        (io::ErrorKind::NotFound, What::Kernel) => {
            " (build it with firecracker-image, or correct kernel_image_path)"
        }
        (io::ErrorKind::NotFound, What::Initrd) => {
            " (build it with firecracker-image, or correct initrd_path)"
        }
        (io::ErrorKind::NotFound, What::RootImage) => {
            " (build it with firecracker-image, or correct root_drive)"
        }
        _ => "",
    }
}

/// The files of a VM's drives, locked as it uses them: for reading where the jail makes a private copy.
#[derive(Debug)]
pub struct DriveFiles {
    /// The root drive's.
    pub root: HostFile,
    /// Those of the drive mounts, in order.
    pub mounts: Vec<HostFile>,
}

/// Checks the files of `spec` and the host's memory. From here on nobody else gets the files of its drives.
///
/// A lock, and a slow disk, are waited for on a thread of their own, which lets go of the files if nobody waits for it
/// any more.
///
/// # Errors
/// The first thing that is wrong.
pub async fn check(spec: &VmSpec) -> Result<DriveFiles, PreflightError> {
    let spec = spec.clone();
    let work = tokio::task::spawn_blocking(move || check_blocking(&spec));
    work.await
        .unwrap_or_else(|error| Err(PreflightError::Stopped(error)))
}

fn check_blocking(spec: &VmSpec) -> Result<DriveFiles, PreflightError> {
    let head = head(What::Kernel, &spec.kernel)?;
    if ![ELF_MAGIC, BZIMAGE_MAGIC, ARM64_MAGIC]
        .iter()
        .any(|(at, magic)| head.get(*at..at + magic.len()) == Some(magic))
    {
        return Err(PreflightError::WrongFile {
            what: What::Kernel,
            path: spec.kernel.clone(),
            why: "it starts neither like an ELF file nor like a bzImage",
        });
    }
    if let Some(initrd) = &spec.initrd {
        self::head(What::Initrd, initrd)?;
    }
    if let Some(available) = available_mib()
        && u64::from(spec.memory_mib) > available
    {
        return Err(PreflightError::HostMemory {
            asked: spec.memory_mib.into(),
            available,
        });
    }
    let root = drive(spec, What::RootImage, &spec.root.path, spec.root.writable)?;
    let mounts = spec.drive_mounts.iter().enumerate();
    let mounts = mounts.map(|(index, mount)| {
        let what = What::DriveMount(index);
        drive(spec, what, &mount.host_path, mount.writable)
    });
    Ok(DriveFiles {
        root,
        mounts: mounts.collect::<Result<_, _>>()?,
    })
}

/// Opens and locks the file of a drive.
fn drive(
    spec: &VmSpec,
    what: What,
    path: &Path,
    writable: bool,
) -> Result<HostFile, PreflightError> {
    let unusable = |source| PreflightError::File { what, source };
    let found = Found::at(path).map_err(unusable)?;
    let policy = spec.jail.as_ref().map(|jail| jail.policy);
    let copied = policy.is_some_and(|policy| policy.copies(found.is_block_device()));
    let access = if writable && !copied {
        Access::Write
    } else {
        Access::Read
    };
    let file = found.open(access).map_err(unusable)?;
    read_head(what, path, file.file())?;
    Ok(file)
}

/// The first bytes of a file that nobody else must leave alone.
fn head(what: What, path: &Path) -> Result<Vec<u8>, PreflightError> {
    let file = Found::at(path).and_then(|found| found.look());
    let file = file.map_err(|source| PreflightError::File { what, source })?;
    read_head(what, path, &file)
}

/// The first bytes of a file, which must be there.
fn read_head(what: What, path: &Path, file: &File) -> Result<Vec<u8>, PreflightError> {
    let mut head = Vec::with_capacity(HEAD);
    file.take(HEAD as u64)
        .read_to_end(&mut head)
        .map_err(|source| PreflightError::Read {
            what,
            path: path.to_owned(),
            source,
        })?;
    if head.is_empty() {
        return Err(PreflightError::WrongFile {
            what,
            path: path.to_owned(),
            why: "it is empty",
        });
    }
    Ok(head)
}

/// The kernel's estimate of memory for new programs; `None` where it gives none.
fn available_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fc_config::Config;
    use fc_errors::chain;
    use fc_proto::control::CreateVMRequest;

    use crate::machine::{BootError, Class};

    fn spec(dir: &Path) -> VmSpec {
        let config = Config {
            kernel_image_path: dir.join("kernel"),
            initrd_path: Some(dir.join("initrd")),
            root_drive: dir.join("root"),
            ..Config::default()
        };
        std::fs::write(dir.join("kernel"), b"\x7fELF...").unwrap();
        std::fs::write(dir.join("initrd"), b"070701").unwrap();
        std::fs::write(dir.join("root"), b"x").unwrap();
        VmSpec::new(&config, &CreateVMRequest::default(), true).unwrap()
    }

    #[test]
    fn each_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path());
        check_blocking(&spec).unwrap();
        for (name, word) in [
            ("kernel", "kernel_image_path"),
            ("initrd", "initrd_path"),
            ("root", "root_drive"),
        ] {
            std::fs::rename(dir.path().join(name), dir.path().join("away")).unwrap();
            let text = chain(&check_blocking(&spec).unwrap_err());
            assert!(text.contains(word), "{text}");
            std::fs::rename(dir.path().join("away"), dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("kernel"), "#!/bin/sh").unwrap();
        let text = check_blocking(&spec).unwrap_err().to_string();
        assert!(text.contains("neither like an ELF"), "{text}");
    }

    #[test]
    fn a_drive_mount_is_a_file_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = spec(dir.path());
        let path = dir.path().join("data");
        spec.drive_mounts = vec![crate::machine::DriveMount {
            host_path: path.clone(),
            vm_path: "/data".into(),
            fstype: "ext4".into(),
            options: Vec::new(),
            writable: false,
            cache_type: None,
            rate_limiter: None,
        }];
        let problem = || check_blocking(&spec).unwrap_err().to_string();
        assert!(
            problem().contains("DriveMounts[0].HostPath"),
            "{}",
            problem()
        );
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        assert!(
            problem().contains("DriveMounts[0].HostPath"),
            "{}",
            problem()
        );
        let class = |error: PreflightError| BootError::from(error).class();
        let kind = check_blocking(&spec).unwrap_err();
        assert!(chain(&kind).contains("is a FIFO"), "{kind:?}");
        assert_eq!(class(kind), Class::Invalid);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        let writer = HostFile::open(&path, Access::Write).unwrap();
        let in_use = check_blocking(&spec).unwrap_err();
        assert!(chain(&in_use).contains("is in use"), "{in_use:?}");
        assert_eq!(class(in_use), Class::Precondition);
        drop(writer);
        check_blocking(&spec).unwrap();
    }

    #[test]
    fn more_memory_than_the_host_has() {
        let dir = tempfile::tempdir().unwrap();
        let spec = VmSpec {
            memory_mib: u32::MAX,
            ..spec(dir.path())
        };
        let error = check_blocking(&spec).unwrap_err();
        assert!(
            matches!(error, PreflightError::HostMemory { .. }),
            "{error}"
        );
    }
}
