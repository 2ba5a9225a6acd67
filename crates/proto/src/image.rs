//! The description of a guest image directory, written by `firecracker-image`
//! and read by whatever boots or diagnoses it.
//!
//! A directory holds [`KERNEL`], [`ROOTFS`], usually [`INITRD`], and
//! [`MANIFEST`], which is written last: without it the directory is not complete.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The kernel, uncompressed (ELF vmlinux on x86-64, Image on arm64).
pub const KERNEL: &str = "default-vmlinux.bin";
/// The initrd (uncompressed newc cpio) of exactly this kernel. Absent when the
/// kernel was given without modules, because then it has everything built in.
pub const INITRD: &str = "default-initrd.img";
/// The root file system (EROFS, read-only), agent included.
pub const ROOTFS: &str = "default-rootfs.img";
/// The [`Manifest`], as JSON.
pub const MANIFEST: &str = "image.json";

/// What is in an image directory and what it was made of.
///
/// Unknown fields are ignored, so that older readers understand newer builders
/// as long as [`Manifest::FORMAT`] stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`Manifest::FORMAT`] of the writer. Readers refuse others.
    pub format: u32,
    /// Version of the `firecracker-image` that built it, for messages.
    pub builder: String,
    /// [`crate::guest::PROTOCOL`] that the builder, and with it the agent, was built for.
    pub protocol: u32,
    /// The kernel's release, as `uname -r` prints it in the guest.
    pub kernel_release: String,
    /// Least memory of a VM that boots this image to a serving agent, in MiB.
    pub min_memory_mib: u32,
    /// The directory's files by name ([`KERNEL`], ...).
    pub files: BTreeMap<String, FileInfo>,
    /// What the builder was asked for, by option name (`kernel-package`, `agent`, ...).
    pub request: BTreeMap<String, String>,
    /// SHA-256 (lower-case hex) of every file that went in, by its path on the build host.
    pub inputs: BTreeMap<String, String>,
}

impl Manifest {
    /// Version of this description's format.
    pub const FORMAT: u32 = 1;
}

/// One file of an image directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the content, lower-case hex.
    pub sha256: String,
}
