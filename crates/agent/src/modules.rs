//! Loads modules of the running kernel: of a file system or of a device.
//!
//! The kernel would ask `/sbin/modprobe`, which our image does not have. Files: `modules.dep` has
//! one line per module, `path: dependency dependency...`, paths relative to its directory, the
//! first dependency to be loaded last. Source: kmod's modules.dep(5).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// finit_module(2): the kernel decompresses the file (`MODULE_INIT_COMPRESSED_FILE`, linux/module.h).
const COMPRESSED: libc::c_uint = 4;

/// Why a module could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A list of the kernel's cannot be read.
    #[error("Cannot read {path}")]
    Read {
        /// The list.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither built in nor a module in the image.
    #[error("The guest's kernel does not have {name} and {path} lists no module for it")]
    Unknown {
        /// The module.
        name: String,
        /// The list of modules.
        path: PathBuf,
    },
    /// The kernel refused the module.
    #[error("Cannot load module {path}")]
    Load {
        /// The module.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes sure that the kernel knows file systems of type `fstype`.
///
/// # Errors
/// When it neither has it nor can load a module for it.
pub fn ensure_filesystem(fstype: &str) -> Result<(), ModuleError> {
    if is_known(&read("/proc/filesystems".into())?, fstype) {
        return Ok(());
    }
    load(fstype)
}

/// Loads the module `name` and those that it needs. One that is loaded already is no error.
///
/// # Errors
/// When the image has none of that name, or the kernel refuses it.
pub fn load(name: &str) -> Result<(), ModuleError> {
    let release = nix::sys::utsname::uname().map_err(|errno| ModuleError::Read {
        path: "uname(2)".into(),
        source: errno.into(),
    })?;
    let dir = Path::new("/lib/modules").join(release.release());
    let list = dir.join("modules.dep");
    let text = match read(list.clone()) {
        Err(ModuleError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            String::new()
        }
        result => result?,
    };
    let modules = load_order(&text, name).ok_or_else(|| ModuleError::Unknown {
        name: name.to_owned(),
        path: list,
    })?;
    modules
        .iter()
        .try_for_each(|module| insert(dir.join(module)))
}

fn read(path: PathBuf) -> Result<String, ModuleError> {
    fs::read_to_string(&path).map_err(|source| ModuleError::Read { path, source })
}

/// Whether `/proc/filesystems` lists `fstype`: a line is an optional `nodev`, a tab and the type.
fn is_known(filesystems: &str, fstype: &str) -> bool {
    filesystems
        .lines()
        .any(|line| line.split('\t').next_back() == Some(fstype))
}

/// The module called `name` and all it needs, in load order.
fn load_order<'a>(dependencies: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let wanted = name.replace('-', "_");
    dependencies.lines().find_map(|line| {
        let (module, needs) = line.split_once(':')?;
        let file = module.rsplit('/').next()?;
        let stem = file.split_once(".ko")?.0.replace('-', "_");
        (stem == wanted).then(|| {
            let needs = needs.split_ascii_whitespace().rev();
            needs.chain(std::iter::once(module)).collect()
        })
    })
}

fn insert(path: PathBuf) -> Result<(), ModuleError> {
    let plain = path.extension().is_some_and(|extension| extension == "ko");
    let flags = if plain {
        ModuleInitFlags::empty()
    } else {
        ModuleInitFlags::from_bits_retain(COMPRESSED)
    };
    let result = File::open(&path).and_then(|file| match finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    });
    result.map_err(|source| ModuleError::Load { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/xfs/xfs.ko: kernel/lib/libcrc32c.ko kernel/crypto/crc32c.ko\n\
        kernel/lib/libcrc32c.ko:\nkernel/x/a-b.ko.xz:\n";

    #[test]
    fn dependencies_come_first_the_last_listed_foremost() {
        let order = [
            "kernel/crypto/crc32c.ko",
            "kernel/lib/libcrc32c.ko",
            "kernel/fs/xfs/xfs.ko",
        ];
        assert_eq!(load_order(DEP, "xfs").unwrap(), order);
        assert_eq!(load_order(DEP, "a_b").unwrap(), ["kernel/x/a-b.ko.xz"]);
        assert_eq!(load_order(DEP, "btrfs"), None);
    }

    #[test]
    fn known_types_are_the_last_word_of_a_line() {
        let list = "nodev\tproc\n\text4\n";
        assert!(is_known(list, "proc") && is_known(list, "ext4"));
        assert!(!is_known(list, "nodev") && !is_known(list, "ext"));
    }
}
