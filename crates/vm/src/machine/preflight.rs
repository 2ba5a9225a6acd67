//! What would make a boot fail, found before anything is started.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

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
    /// A file that the VM is made of cannot be read.
    #[error("The {what} {} cannot be read{}", path.display(), advice(*what, source))]
    File {
        /// Which file.
        what: What,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the VM is empty or a directory.
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

fn advice(what: What, error: &io::Error) -> &'static str {
    match (error.kind(), what) {
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

/// Checks the files of `spec` and the host's memory.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(spec: &VmSpec) -> Result<(), PreflightError> {
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
    self::head(What::RootImage, &spec.root.path)?;
    for (index, mount) in spec.drive_mounts.iter().enumerate() {
        self::head(What::DriveMount(index), &mount.host_path)?;
    }
    let available = available_mib();
    match available {
        Some(available) if u64::from(spec.memory_mib) > available => {
            Err(PreflightError::HostMemory {
                asked: spec.memory_mib.into(),
                available,
            })
        }
        _ => Ok(()),
    }
}

/// The first bytes of a file, which must be there.
fn head(what: What, path: &Path) -> Result<Vec<u8>, PreflightError> {
    let wrong = |why| PreflightError::WrongFile {
        what,
        path: path.to_owned(),
        why,
    };
    let unreadable = |source| PreflightError::File {
        what,
        path: path.to_owned(),
        source,
    };
    // Asked first: opening a FIFO would wait for a writer.
    let kind = std::fs::metadata(path).map_err(unreadable)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(wrong("it is neither a file nor a block device"));
    }
    let mut head = Vec::with_capacity(HEAD);
    File::open(path)
        .and_then(|file| file.take(HEAD as u64).read_to_end(&mut head))
        .map_err(unreadable)?;
    if head.is_empty() {
        return Err(wrong("it is empty"));
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
    use fc_proto::control::CreateVMRequest;

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
        check(&spec).unwrap();
        for (name, word) in [
            ("kernel", "kernel_image_path"),
            ("initrd", "initrd_path"),
            ("root", "root_drive"),
        ] {
            std::fs::rename(dir.path().join(name), dir.path().join("away")).unwrap();
            let text = check(&spec).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
            std::fs::rename(dir.path().join("away"), dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("kernel"), "#!/bin/sh").unwrap();
        let text = check(&spec).unwrap_err().to_string();
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
        let problem = || check(&spec).unwrap_err().to_string();
        assert!(
            problem().contains("DriveMounts[0].HostPath"),
            "{}",
            problem()
        );
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        assert!(problem().contains("neither a file"), "{}", problem());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "x").unwrap();
        check(&spec).unwrap();
    }

    #[test]
    fn more_memory_than_the_host_has() {
        let dir = tempfile::tempdir().unwrap();
        let spec = VmSpec {
            memory_mib: u32::MAX,
            ..spec(dir.path())
        };
        let error = check(&spec).unwrap_err();
        assert!(
            matches!(error, PreflightError::HostMemory { .. }),
            "{error}"
        );
    }
}
