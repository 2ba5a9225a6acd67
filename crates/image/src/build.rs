//! A build: from the request to a complete image directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fc_proto::image::{INITRD, KERNEL, ROOTFS};

use crate::inputs::Inputs;
use crate::kernel::Kernel;
use crate::modules::{self, Module, Tree};
use crate::output::Output;
use crate::package::{Cache, Package};
use crate::rootfs::{self, Content};
use crate::{elf, file, initrd, kernel, output, package, runtime, tool};

/// What to build.
#[derive(Debug)]
pub struct Request {
    /// Directory to build into; created when missing.
    pub output: PathBuf,
    /// Where the kernel comes from.
    pub kernel: KernelSource,
    /// `firecracker-agent`, statically linked.
    pub agent: PathBuf,
    /// `firecracker-initrd`, statically linked. Not needed for a kernel without modules.
    pub initrd_init: Option<PathBuf>,
    /// The OCI runtime.
    pub runtime: PathBuf,
    /// Build also when nothing changed.
    pub force: bool,
}

/// Where a kernel comes from.
#[derive(Debug)]
pub enum KernelSource {
    /// A Debian package, or one that depends on it.
    Package {
        /// Its name.
        name: String,
        /// Where downloads are kept.
        cache: Cache,
    },
    /// Files.
    Files {
        /// vmlinux, bzImage or arm64 Image.
        kernel: PathBuf,
        /// Its modules; `None` when everything is built in.
        modules: Option<PathBuf>,
    },
}

/// The image cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has modules, and nothing to load them with.
    #[error("A kernel with modules needs an initrd; give its program with --initrd-init")]
    NoInitrdInit,
    /// A file that should be a kernel.
    #[error("Cannot use the kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: kernel::Error,
    },
    /// Kernel package.
    #[error(transparent)]
    Package(#[from] package::Error),
    /// Modules.
    #[error(transparent)]
    Modules(#[from] modules::Error),
    /// OCI runtime.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// Agent or initrd program.
    #[error(transparent)]
    Elf(#[from] elf::Error),
    /// Root image.
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    /// Missing program.
    #[error(transparent)]
    Tool(#[from] tool::Error),
    /// The output directory.
    #[error(transparent)]
    Output(#[from] output::Error),
    /// An input.
    #[error(transparent)]
    File(#[from] file::Error),
}

/// Brings the image directory up to date. Returns whether anything had to be built.
pub fn build(request: &Request) -> Result<bool, Error> {
    // Before anything takes time, and because a new version makes other images.
    let mkfs = tool::find("mkfs.erofs", "erofs-utils")?;
    let output = Output::lock(&request.output)?;
    let (options, package) = describe(request)?;
    if !request.force && output.is_current(&options) {
        return Ok(false);
    }
    let mut inputs = Inputs::default();
    inputs.read(&mkfs)?;
    inputs.read(
        &std::env::current_exe().map_err(file::because("find", Path::new("/proc/self/exe")))?,
    )?;

    let (kernel, modules) = load_kernel(&request.kernel, package.as_ref(), &mut inputs)?;
    let agent = static_program(&request.agent, &mut inputs)?;
    let work = output.work_dir()?;
    let mut memory = elf::loaded_size(&kernel.image);
    file::write(&work.path().join(KERNEL), &kernel.image, 0o644)?;

    let root_modules = match modules {
        None => None,
        Some(tree) => {
            let init = request.initrd_init.as_ref().ok_or(Error::NoInitrdInit)?;
            let init = static_program(init, &mut inputs)?;
            let image = initrd::build(&init, &tree.select(modules::REQUIRED, &[])?);
            // The archive and its unpacked files are in memory at the same time.
            memory += 2 * image.len() as u64;
            file::write(&work.path().join(INITRD), &image, 0o644)?;
            let modules = tree.select(modules::REQUIRED, modules::OPTIONAL)?;
            record_modules(&tree, &modules, &request.kernel, &mut inputs)?;
            let builtin = file::read(tree.builtin_list())?;
            Some(rootfs::Modules {
                release: kernel.release.clone(),
                modules,
                builtin,
            })
        }
    };
    let content = Content {
        agent,
        runtime_name: file_name(&request.runtime),
        runtime: inputs.read(&request.runtime)?,
        libraries: Vec::new(),
        modules: root_modules,
    };
    let content = with_libraries(content, &request.runtime, &mut inputs)?;
    let root = work.path().join("root");
    rootfs::stage(&root, &content)?;
    rootfs::mkfs(&mkfs, &root, &work.path().join(ROOTFS))?;
    output.publish(
        &work,
        output::Description {
            kernel_release: kernel.release,
            min_memory_mib: min_memory_mib(memory),
            request: options,
            inputs: inputs.into_digests(),
        },
    )?;
    Ok(true)
}

/// The request in words, to tell whether the next one asks for the same.
fn describe(request: &Request) -> Result<(BTreeMap<String, String>, Option<Package>), Error> {
    let mut options = BTreeMap::new();
    let mut add = |key: &str, value: String| options.insert(key.to_owned(), value);
    let mut found = None;
    match &request.kernel {
        KernelSource::Package { name, cache } => {
            let package = cache.resolve(name)?;
            add(
                "kernel-package",
                format!("{} {}", package.name, package.version),
            );
            found = Some(package);
        }
        KernelSource::Files { kernel, modules } => {
            add("kernel", file::canonical(kernel)?.display().to_string());
            if let Some(modules) = modules {
                add("modules", file::canonical(modules)?.display().to_string());
            }
        }
    }
    add(
        "agent",
        file::canonical(&request.agent)?.display().to_string(),
    );
    if let Some(init) = &request.initrd_init {
        add("initrd-init", file::canonical(init)?.display().to_string());
    }
    add(
        "runtime",
        file::canonical(&request.runtime)?.display().to_string(),
    );
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        add("source-date-epoch", epoch);
    }
    Ok((options, found))
}

/// The files of a package are not recorded as inputs: its name and version, which
/// are in the request, stand for them, also when the cache is gone.
fn load_kernel(
    source: &KernelSource,
    package: Option<&Package>,
    inputs: &mut Inputs,
) -> Result<(Kernel, Option<Tree>), Error> {
    let (path, data, modules) = match (source, package) {
        (KernelSource::Package { cache, .. }, Some(package)) => {
            let files = cache.files(package)?;
            let data = file::read(&files.kernel)?;
            (files.kernel, data, Some(files.root))
        }
        (KernelSource::Files { kernel, modules }, _) => {
            (kernel.clone(), inputs.read(kernel)?, modules.clone())
        }
        (KernelSource::Package { name, .. }, None) => {
            return Err(package::Error::Unknown(name.clone()).into());
        }
    };
    let kernel = Kernel::from_bytes(data).map_err(|source| Error::Kernel { path, source })?;
    let tree = modules
        .map(|dir| Tree::open(&dir, &kernel.release))
        .transpose()?;
    Ok((kernel, tree))
}

fn record_modules(
    tree: &Tree,
    modules: &[Module],
    source: &KernelSource,
    inputs: &mut Inputs,
) -> Result<(), Error> {
    if matches!(source, KernelSource::Files { .. }) {
        inputs.read(tree.builtin_list())?;
        for module in modules {
            inputs.read(&module.source)?;
        }
    }
    Ok(())
}

fn static_program(path: &Path, inputs: &mut Inputs) -> Result<Vec<u8>, Error> {
    let data = inputs.read(path)?;
    elf::require_static(path, &data)?;
    Ok(data)
}

fn with_libraries(
    mut content: Content,
    runtime: &Path,
    inputs: &mut Inputs,
) -> Result<Content, Error> {
    for path in runtime::libraries(runtime, &content.runtime)? {
        let data = inputs.read(&path)?;
        content.libraries.push((path, data));
    }
    Ok(content)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// What a guest needs beyond the loaded kernel and its initrd, in MiB: page
/// tables, the kernel's own data, the agent and room for one OCI runtime. With
/// Debian's 6.1 kernel a guest dies at boot with less than 20 MiB for all that.
const WORKING_MEMORY_MIB: u64 = 32;

fn min_memory_mib(boot: u64) -> u32 {
    let mib = boot.div_ceil(1 << 20) + WORKING_MEMORY_MIB;
    u32::try_from(mib.next_multiple_of(8)).unwrap_or(u32::MAX)
}
