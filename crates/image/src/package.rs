//! A kernel from the distribution's package archive: found, downloaded and
//! unpacked into a cache, never installed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{file, tool};

/// The kernel package cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// apt does not know it, also after an update of its lists.
    #[error(
        "No package {0} in the archives that apt knows here; name another with --kernel-package or give a kernel with --kernel"
    )]
    Unknown(String),
    /// The package is no kernel.
    #[error("The package {0} holds no kernel (no boot/vmlinuz-*)")]
    NoKernel(String),
    /// A program is missing or failed.
    #[error("Cannot get the kernel package {package}")]
    Tool {
        /// The package.
        package: String,
        /// Why.
        source: tool::Error,
    },
    /// A file cannot be written or read.
    #[error(transparent)]
    File(#[from] file::Error),
}

/// One version of a package that holds a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name, `linux-image-6.1.0-56-cloud-amd64`.
    pub name: String,
    /// Its version, `6.1.192-2`.
    pub version: String,
}

/// A kernel and its modules.
#[derive(Debug)]
pub struct Files {
    /// The `vmlinuz`.
    pub kernel: PathBuf,
    /// The root directory that the package was unpacked to.
    pub root: PathBuf,
}

/// What a name stood for, and when: valid as long as apt's lists do not change.
#[derive(Debug, Serialize, Deserialize)]
struct Resolved {
    lists_changed_ns: u128,
    package: Package,
}

/// Downloaded kernels, shared by all builds of a user.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
}

const LISTS: &str = "/var/lib/apt/lists";

impl Cache {
    /// A cache in `dir`, which need not exist.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// `$XDG_CACHE_HOME/firecracker-image` or `~/.cache/firecracker-image`.
    pub fn default_dir() -> PathBuf {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
        base.unwrap_or_else(|| PathBuf::from("/var/cache"))
            .join("firecracker-image")
    }

    /// The package that holds the kernel for `name`, which may be a package that
    /// depends on the current kernel's. Remembered until apt's lists change,
    /// because apt-cache takes up to a second.
    pub fn resolve(&self, name: &str) -> Result<Package, Error> {
        let memory = self.dir.join("resolved.json");
        let mut known: BTreeMap<String, Resolved> = std::fs::read(&memory)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let lists_changed_ns = lists_changed_ns();
        if let Some(hit) = known
            .get(name)
            .filter(|k| k.lists_changed_ns == lists_changed_ns)
        {
            return Ok(hit.package.clone());
        }
        let package = match Apt::System.resolve(name) {
            Ok(package) => package,
            Err(Error::Unknown(_)) => self.private_apt()?.resolve(name)?,
            Err(error) => return Err(error),
        };
        known.insert(
            name.to_owned(),
            Resolved {
                lists_changed_ns,
                package: package.clone(),
            },
        );
        let text = serde_json::to_vec_pretty(&known).unwrap_or_default();
        self.place(&text, &memory)?;
        Ok(package)
    }

    /// The unpacked package, downloaded when it is not in the cache.
    pub fn files(&self, package: &Package) -> Result<Files, Error> {
        let root = self
            .dir
            .join(format!("{}_{}", package.name, package.version));
        if !root.is_dir() {
            self.download(package, &root)?;
        }
        let kernel = file::list(&root.join("boot"))
            .ok()
            .and_then(|files| files.into_iter().find(|f| is_vmlinuz(f)))
            .ok_or_else(|| Error::NoKernel(package.name.clone()))?;
        Ok(Files { kernel, root })
    }

    fn download(&self, package: &Package, root: &Path) -> Result<(), Error> {
        eprintln!("Downloading {} {}", package.name, package.version);
        let work = self.work_dir()?;
        let failed = |source| Error::Tool {
            package: package.name.clone(),
            source,
        };
        // Lists that are older than the archive name files which it no longer has.
        if let Err(stale) = Apt::System.download(package, work.path()) {
            self.private_apt()?
                .download(package, work.path())
                .map_err(|_| failed(stale))?;
        }
        let deb = file::list(work.path())?
            .into_iter()
            .find(|f| f.extension().is_some_and(|e| e == "deb"))
            .ok_or_else(|| Error::Unknown(package.name.clone()))?;
        let tree = work.path().join("root");
        let dpkg = tool::find("dpkg-deb", "dpkg").map_err(failed)?;
        tool::run(Command::new(dpkg).arg("-x").arg(deb).arg(&tree)).map_err(failed)?;
        match file::rename(&tree, root) {
            Err(_) if root.is_dir() => Ok(()), // another build was faster
            result => Ok(result?),
        }
    }

    fn work_dir(&self) -> Result<tempfile::TempDir, Error> {
        file::create_dir(&self.dir)?;
        let new = tempfile::Builder::new()
            .prefix(".work-")
            .tempdir_in(&self.dir);
        Ok(new.map_err(file::because("create a directory in", &self.dir))?)
    }

    fn place(&self, content: &[u8], path: &Path) -> Result<(), Error> {
        let work = self.work_dir()?;
        let temporary = work.path().join("file");
        file::write(&temporary, content, 0o644)?;
        Ok(file::rename(&temporary, path)?)
    }

    /// apt with lists of our own, brought up to date: needs no root, changes nothing of the system's.
    fn private_apt(&self) -> Result<Apt, Error> {
        eprintln!("Updating a private copy of the package lists");
        let apt = Apt::Private(self.dir.join("apt"));
        apt.update()?;
        Ok(apt)
    }
}

/// apt, with the system's lists or its own.
enum Apt {
    System,
    Private(PathBuf),
}

impl Apt {
    fn command(&self, program: &str) -> Result<Command, tool::Error> {
        let mut command = Command::new(tool::find(program, "apt")?);
        // Without this apt drops to a user that cannot write to our directory, and warns about it.
        command.args(["-qq", "-o", "APT::Sandbox::User=root"]);
        if let Self::Private(dir) = self {
            command
                .arg("-o")
                .arg(format!("Dir::State::Lists={}/lists", dir.display()));
            command
                .arg("-o")
                .arg(format!("Dir::Cache={}/cache", dir.display()));
        }
        Ok(command)
    }

    fn update(&self) -> Result<(), Error> {
        if let Self::Private(dir) = self {
            file::create_dir(&dir.join("lists/partial"))?;
            file::create_dir(&dir.join("cache/archives/partial"))?;
        }
        self.command("apt-get")
            .and_then(|mut command| tool::run(command.arg("update")))
            .map(drop)
            .map_err(|source| Error::Tool {
                package: "list".to_owned(),
                source,
            })
    }

    fn resolve(&self, name: &str) -> Result<Package, Error> {
        let record = self.show(name)?;
        let Some(concrete) = kernel_dependency(&record) else {
            return package(name, &record);
        };
        package(concrete, &self.show(concrete)?)
    }

    fn show(&self, name: &str) -> Result<String, Error> {
        let failed = |source| Error::Tool {
            package: name.to_owned(),
            source,
        };
        let mut command = self.command("apt-cache").map_err(failed)?;
        match tool::run(command.args(["show", "--no-all-versions", "--", name])) {
            Ok(record) if !record.trim().is_empty() => Ok(record),
            Ok(_) | Err(tool::Error::Failed { .. }) => Err(Error::Unknown(name.to_owned())),
            Err(error) => Err(failed(error)),
        }
    }

    fn download(&self, package: &Package, dir: &Path) -> Result<(), tool::Error> {
        let version = format!("{}={}", package.name, package.version);
        let mut command = self.command("apt-get")?;
        tool::run(command.current_dir(dir).args(["download", "--", &version])).map(drop)
    }
}

fn field<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

fn package(name: &str, record: &str) -> Result<Package, Error> {
    let version = field(record, "Version").ok_or_else(|| Error::Unknown(name.to_owned()))?;
    Ok(Package {
        name: name.to_owned(),
        version: version.to_owned(),
    })
}

/// The kernel package that a metapackage stands for. A real kernel package depends on none.
fn kernel_dependency(record: &str) -> Option<&str> {
    field(record, "Depends")?
        .split(',')
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
}

fn is_vmlinuz(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-"))
}

fn lists_changed_ns() -> u128 {
    let changed = std::fs::metadata(LISTS).and_then(|m| m.modified());
    let since = changed
        .unwrap_or(SystemTime::UNIX_EPOCH)
        .duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = "Package: linux-image-cloud-amd64\nVersion: 6.1.9-2\n\
        Provides: wireguard-modules (= 1.0.0)\n\
        Depends: linux-image-6.1.0-5-cloud-amd64 (= 6.1.9-2)\nDescription: x\n";
    const REAL: &str = "Package: linux-image-6.1.0-5-cloud-amd64\nVersion: 6.1.9-2\n\
        Depends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool\n";

    #[test]
    fn a_metapackage_names_the_kernel_s() {
        assert_eq!(
            kernel_dependency(META),
            Some("linux-image-6.1.0-5-cloud-amd64")
        );
        assert_eq!(kernel_dependency(REAL), None);
        let real = package("linux-image-6.1.0-5-cloud-amd64", REAL).unwrap();
        assert_eq!(real.version, "6.1.9-2");
    }

    #[test]
    fn an_unpacked_package_without_a_kernel_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let package = Package {
            name: "some-package".into(),
            version: "1".into(),
        };
        file::create_dir(&dir.path().join("some-package_1/boot")).unwrap();
        let cache = Cache::new(dir.path().to_owned());
        assert!(
            matches!(cache.files(&package), Err(Error::NoKernel(name)) if name == "some-package")
        );
    }
}
