//! Kernel modules: which ones the guest gets, and what each of them needs.
//!
//! Dependencies come from the modules themselves (`.modinfo`), because
//! `modules.dep` exists only where `depmod` ran, and it does not run for a kernel
//! package that is unpacked but not installed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::decompress::{self, decompress};
use crate::{elf, file, signature};

/// What the guest needs to find and mount its root, serve, and run a container.
pub const REQUIRED: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
    "ext4",
];

/// What the agent may load later, from the root image: file systems of other
/// drives, and devices of later features. A kernel may lack them.
pub const OPTIONAL: &[&str] = &[
    "squashfs",
    "xfs",
    "btrfs",
    "fuse",
    "virtiofs",
    "loop",
    "virtio_net",
    "virtio_balloon",
    "virtio_rng",
    "virtio_mem",
    "af_packet",
    "tun",
    "veth",
    "bridge",
];

/// Algorithms that a module asks the kernel's crypto layer for by name, which
/// shows in no dependency. Loaded first where the kernel has them as modules.
const CRYPTO: &[(&str, &[&str])] = &[
    ("libcrc32c", &["crc32c_generic"]),
    ("ext4", &["crc32c_generic"]),
    (
        "btrfs",
        &[
            "crc32c_generic",
            "xxhash_generic",
            "sha256_generic",
            "blake2b_generic",
        ],
    ),
];

/// A module tree cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory holds no modules of this kernel.
    #[error("No modules of kernel {release} in {} (looked for {release}/modules.builtin there)", dir.display())]
    NoTree {
        /// Where it was looked for.
        dir: PathBuf,
        /// The kernel's release.
        release: String,
    },
    /// Neither a module nor built in.
    #[error("Kernel {release} has no {name}, neither as a module nor built in; the guest needs it{}", .by.as_ref().map(|b| format!(" for {b}")).unwrap_or_default())]
    NoModule {
        /// The kernel's release.
        release: String,
        /// The module's name.
        name: String,
        /// The module that depends on it.
        by: Option<String>,
    },
    /// A module cannot be unpacked.
    #[error("The module {} cannot be decompressed", path.display())]
    Packed {
        /// The module's file.
        path: PathBuf,
        /// Why.
        source: decompress::Error,
    },
    /// A module is no module.
    #[error(transparent)]
    Elf(#[from] elf::Error),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] file::Error),
}

/// All modules of one kernel, `lib/modules/<release>`.
#[derive(Debug)]
pub struct Tree {
    release: String,
    builtin_list: PathBuf,
    builtin: BTreeSet<String>,
    /// Path and path below the tree, by name.
    files: BTreeMap<String, (PathBuf, String)>,
}

/// One module, uncompressed and without a signature.
#[derive(Debug, Clone)]
pub struct Module {
    /// Normalised name, `virtio_rng` for `virtio-rng.ko`.
    pub name: String,
    /// Where it was found.
    pub source: PathBuf,
    /// Path below `lib/modules/<release>`, ending in `.ko`.
    pub path: String,
    /// The ELF file.
    pub image: Vec<u8>,
    /// Names of the modules to load before, in order, their own dependencies included.
    pub needs: Vec<String>,
}

impl Tree {
    /// Opens the modules of kernel `release` in `dir`, which is their directory
    /// itself, one that holds it, or a root directory.
    pub fn open(dir: &Path, release: &str) -> Result<Self, Error> {
        let below = |modules: &str| dir.join(modules).join(release);
        let root = [
            dir.to_owned(),
            below(""),
            below("lib/modules"),
            below("usr/lib/modules"),
        ]
        .into_iter()
        .find(|d| {
            d.canonicalize().is_ok_and(|d| d.ends_with(release))
                && d.join("modules.builtin").is_file()
        })
        .ok_or_else(|| Error::NoTree {
            dir: dir.to_owned(),
            release: release.to_owned(),
        })?;
        let builtin_list = root.join("modules.builtin");
        let builtin = String::from_utf8_lossy(&file::read(&builtin_list)?)
            .lines()
            .filter_map(|line| module_name(line.rsplit('/').next()?))
            .collect();
        let mut files = BTreeMap::new();
        collect(&root, "kernel", &mut files)?;
        Ok(Self {
            release: release.to_owned(),
            builtin_list,
            builtin,
            files,
        })
    }

    /// `modules.builtin`, an input of the build.
    pub fn builtin_list(&self) -> &Path {
        &self.builtin_list
    }

    /// The modules `required` and `optional`, and what they need, in an order in which they load.
    pub fn select(&self, required: &[&str], optional: &[&str]) -> Result<Vec<Module>, Error> {
        let mut selection = Vec::new();
        for name in required {
            self.add(name, None, &mut selection)?;
        }
        for name in optional
            .iter()
            .filter(|name| self.files.contains_key(**name))
        {
            self.add(name, None, &mut selection)?;
        }
        Ok(selection)
    }

    /// Appends `name` behind what it needs. The kernel's modules have no cycles.
    fn add(&self, name: &str, by: Option<&str>, selection: &mut Vec<Module>) -> Result<(), Error> {
        let known = selection.iter().any(|module: &Module| module.name == name);
        if known || self.builtin.contains(name) {
            return Ok(());
        }
        let (source, path) = self.files.get(name).ok_or_else(|| Error::NoModule {
            release: self.release.clone(),
            name: name.to_owned(),
            by: by.map(str::to_owned),
        })?;
        let image = unpack(source)?;
        let direct = self.direct_needs(name, source, &image)?;
        let mut needs: Vec<String> = Vec::new();
        for need in direct {
            self.add(&need, Some(name), selection)?;
            let Some(module) = selection.iter().find(|m| m.name == need) else {
                continue; // built in
            };
            for need in module.needs.iter().chain([&module.name]) {
                if !needs.contains(need) {
                    needs.push(need.clone());
                }
            }
        }
        selection.push(Module {
            name: name.to_owned(),
            source: source.clone(),
            path: path.clone(),
            image,
            needs,
        });
        Ok(())
    }

    fn direct_needs(&self, name: &str, source: &Path, image: &[u8]) -> Result<Vec<String>, Error> {
        let crypto = CRYPTO.iter().filter(|(module, _)| *module == name);
        let mut needs: Vec<String> = crypto
            .flat_map(|(_, algorithms)| *algorithms)
            .filter(|algorithm| self.files.contains_key(**algorithm))
            .map(|algorithm| (*algorithm).to_owned())
            .collect();
        for line in elf::modinfo(source, image)? {
            if let Some(depends) = line.strip_prefix("depends=") {
                let names = depends.split(',').filter(|n| !n.is_empty());
                needs.extend(names.map(|n| n.replace('-', "_")));
            }
        }
        Ok(needs)
    }
}

/// The text of a `modules.dep` for `modules`: each line the path of a module and
/// of what it needs, the one to load first last, as depmod writes it.
pub fn modules_dep(modules: &[Module]) -> String {
    let path = |name: &str| {
        modules
            .iter()
            .find(|m| m.name == name)
            .map(|m| m.path.as_str())
    };
    let mut lines: Vec<String> = modules
        .iter()
        .map(|module| {
            let needs = module.needs.iter().rev().filter_map(|need| path(need));
            needs.fold(format!("{}:", module.path), |line, need| line + " " + need) + "\n"
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// `virtio-rng.ko.xz` is the module `virtio_rng`; other files are none.
fn module_name(file_name: &str) -> Option<String> {
    let (stem, suffix) = file_name.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

fn collect(
    root: &Path,
    below: &str,
    files: &mut BTreeMap<String, (PathBuf, String)>,
) -> Result<(), Error> {
    for path in file::list(&root.join(below))? {
        let Some(file_name) = path.file_name().and_then(|n| n.to_str()) else {
            continue;
        };
        let relative = format!("{below}/{file_name}");
        if let Some(name) = module_name(file_name) {
            let plain = relative.split_once(".ko").map_or("", |(stem, _)| stem);
            files.insert(name, (path, format!("{plain}.ko")));
        } else if path.is_dir() {
            collect(root, &relative, files)?;
        }
    }
    Ok(())
}

/// A module's ELF file, neither compressed nor signed.
fn unpack(path: &Path) -> Result<Vec<u8>, Error> {
    let mut image = file::read(path)?;
    if decompress::Format::detect(&image).is_some() {
        image = decompress(&image).map_err(|source| Error::Packed {
            path: path.to_owned(),
            source,
        })?;
    }
    signature::strip(&mut image);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, needs: &[&str]) -> Module {
        Module {
            name: name.to_owned(),
            source: PathBuf::new(),
            path: format!("kernel/{name}.ko"),
            image: Vec::new(),
            needs: needs.iter().map(|n| (*n).to_owned()).collect(),
        }
    }

    #[test]
    fn names_are_normalised() {
        assert_eq!(
            module_name("virtio-rng.ko.xz").as_deref(),
            Some("virtio_rng")
        );
        assert_eq!(module_name("loop.ko").as_deref(), Some("loop"));
        assert_eq!(module_name("modules.order"), None);
        assert_eq!(module_name("x.ko.txt"), None);
    }

    #[test]
    fn modules_dep_lists_the_first_to_load_last() {
        let text = modules_dep(&[
            module("ring", &[]),
            module("virtio", &["ring"]),
            module("net", &["ring", "virtio"]),
        ]);
        assert_eq!(
            text,
            "kernel/net.ko: kernel/virtio.ko kernel/ring.ko\nkernel/ring.ko:\n\
             kernel/virtio.ko: kernel/ring.ko\n"
        );
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("lib/modules/6.0-test");
        file::write(
            &tree.join("modules.builtin"),
            b"kernel/fs/ext4/ext4.ko\n",
            0o644,
        )
        .unwrap();
        file::create_dir(&tree.join("kernel")).unwrap();
        for dir in [dir.path(), &tree, &dir.path().join("lib/modules")] {
            let tree = Tree::open(dir, "6.0-test").unwrap();
            assert!(tree.select(&["ext4"], &["xfs"]).unwrap().is_empty());
            let error = tree.select(&["erofs"], &[]).unwrap_err().to_string();
            assert!(error.contains("6.0-test has no erofs"), "{error}");
        }
        assert!(matches!(
            Tree::open(dir.path(), "6.1"),
            Err(Error::NoTree { .. })
        ));
    }
}
