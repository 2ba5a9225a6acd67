//! The guest's root file system: agent, OCI runtime, modules, and empty mount
//! points, as a read-only EROFS image.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::modules::{self, Module};
use crate::{file, tool};

/// The root file system cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of it cannot be written.
    #[error(transparent)]
    File(#[from] file::Error),
    /// mkfs.erofs is missing or failed.
    #[error("Cannot make the root image")]
    Mkfs(#[from] tool::Error),
}

/// What goes in.
#[derive(Debug)]
pub struct Content {
    /// The agent's binary.
    pub agent: Vec<u8>,
    /// The OCI runtime's file name, below `/usr/bin`.
    pub runtime_name: String,
    /// The OCI runtime's binary.
    pub runtime: Vec<u8>,
    /// Its loader and libraries: path on the host, content.
    pub libraries: Vec<(PathBuf, Vec<u8>)>,
    /// Modules, and the kernel's release; `None` when the kernel has none.
    pub modules: Option<Modules>,
}

/// The modules of the root file system.
#[derive(Debug)]
pub struct Modules {
    /// The kernel's release.
    pub release: String,
    /// The modules, dependencies included.
    pub modules: Vec<Module>,
    /// Text of `modules.builtin`.
    pub builtin: Vec<u8>,
}

/// Empty directories: what the agent mounts on, and root's home.
const DIRECTORIES: &[(&str, u32)] = &[
    ("container", 0o755),
    ("dev", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/tmp", 0o1777),
    ("volumes", 0o755),
];

/// The kernel writes the name servers of its `ip=` argument to /proc/net/pnp.
const LINKS: &[(&str, &str)] = &[
    ("usr/bin", "bin"),
    ("usr/lib", "lib"),
    ("usr/lib64", "lib64"),
    ("usr/sbin", "sbin"),
    ("/proc/net/pnp", "etc/resolv.conf"),
    ("/run", "var/run"),
    ("/sbin/init", "usr/local/bin/agent"),
];

const FILES: &[(&str, &str)] = &[
    ("etc/group", "root:x:0:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/passwd", "root:x:0:0:root:/root:/sbin/nologin\n"),
];

/// Writes the tree into `root`, an empty directory.
pub fn stage(root: &Path, content: &Content) -> Result<(), Error> {
    for dir in ["usr/bin", "usr/lib", "usr/lib64", "usr/sbin"] {
        file::create_dir(&root.join(dir))?;
    }
    for (target, link) in LINKS {
        file::symlink(Path::new(target), &root.join(link))?;
    }
    for (path, text) in FILES {
        file::write(&root.join(path), text.as_bytes(), 0o644)?;
    }
    for (path, _) in DIRECTORIES {
        file::create_dir(&root.join(path))?;
    }
    let agent = root.join("usr/sbin/init");
    file::write(&agent, &content.agent, 0o755)?;
    // The agent's other program. No symbolic link: it is to be run in containers, which see this directory only.
    file::hard_link(&agent, &root.join("usr/local/bin/volume-init"))?;
    stage_runtime(root, content)?;
    if let Some(modules) = &content.modules {
        stage_modules(root, modules)?;
    }
    // Last, and whatever the umask was.
    set_directory_modes(root)?;
    for (path, mode) in DIRECTORIES {
        file::chmod(&root.join(path), *mode)?;
    }
    Ok(())
}

fn stage_runtime(root: &Path, content: &Content) -> Result<(), Error> {
    let bin = root.join("usr/bin");
    file::write(&bin.join(&content.runtime_name), &content.runtime, 0o755)?;
    if content.runtime_name != "runc" {
        file::symlink(Path::new(&content.runtime_name), &bin.join("runc"))?;
    }
    for (path, library) in &content.libraries {
        file::write(&in_root(root, path), library, 0o755)?;
    }
    // There is no linker cache in the guest: the loader finds only what is in
    // its default directories, of which libc's is one.
    let libc = content
        .libraries
        .iter()
        .find(|(path, _)| path.ends_with("libc.so.6"));
    let home = libc.and_then(|(path, _)| path.parent());
    for (path, _) in &content.libraries {
        if let (Some(home), Some(name)) = (home, path.file_name()) {
            let link = in_root(root, &home.join(name));
            if !link.exists() {
                file::symlink(path, &link)?;
            }
        }
    }
    Ok(())
}

/// Where a host's path goes below `root`. `/lib` and its like are links to
/// `/usr/lib` in the guest, also when they are directories on the host.
fn in_root(root: &Path, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let merged = ["bin", "lib", "lib64", "sbin"]
        .iter()
        .any(|top| relative.starts_with(top));
    if merged {
        root.join("usr").join(relative)
    } else {
        root.join(relative)
    }
}

fn stage_modules(root: &Path, content: &Modules) -> Result<(), Error> {
    let tree = root.join("usr/lib/modules").join(&content.release);
    for module in &content.modules {
        file::write(&tree.join(&module.path), &module.image, 0o644)?;
    }
    let dependencies = modules::modules_dep(&content.modules);
    file::write(&tree.join("modules.dep"), dependencies.as_bytes(), 0o644)?;
    Ok(file::write(
        &tree.join("modules.builtin"),
        &content.builtin,
        0o644,
    )?)
}

fn set_directory_modes(dir: &Path) -> Result<(), Error> {
    file::chmod(dir, 0o755)?;
    for path in file::list(dir)? {
        if path.is_dir() && !path.is_symlink() {
            set_directory_modes(&path)?;
        }
    }
    Ok(())
}

/// Makes an image of `root`. The same tree gives the same bytes: all files belong
/// to root, and their time is `SOURCE_DATE_EPOCH` (seconds), 0 when that is not set.
///
/// Not compressed: the image is shared by all VMs and read through the host's
/// page cache, and decompression would cost each guest time at every boot.
pub fn mkfs(mkfs: &Path, root: &Path, image: &Path) -> Result<(), Error> {
    let epoch = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|e| e.parse::<u64>().ok());
    let mut command = Command::new(mkfs);
    command
        .args(["--quiet", "--all-root", "-x-1"])
        .arg(format!("-T{}", epoch.unwrap_or(0)))
        // The image's identity is its digest in the manifest; nothing looks at this.
        .arg("-U00000000-0000-4000-8000-000000000000")
        .args([image, root]);
    tool::run(&mut command)?;
    Ok(())
}
