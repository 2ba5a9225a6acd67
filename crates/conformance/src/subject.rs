//! The VMMs to test, and what they boot.
//!
//! | variable             | what                                                                              |
//! |----------------------|-----------------------------------------------------------------------------------|
//! | `FC_BIN_DIR`         | directory of `firecracker-tcg`; without it the one this program was built beside   |
//! | `FC_GUEST_DIR`       | output of `firecracker-image`: kernel and modules for `firecracker-tcg`            |
//! | `FIRECRACKER_BIN`    | a real `firecracker`, if there is one                                             |
//! | `FIRECRACKER_KERNEL` | its kernel: uncompressed, every virtio driver and the serial port's built in       |
//! | `FIRECRACKER_ARGS`   | options, separated by blanks, for every VMM that boots that kernel                 |
//!
//! Without the keyboard's driver in that kernel there is no Ctrl+Alt+Del for it. How slow a VMM is has a variable in
//! [`crate::bound`]. Real Firecracker runs on a paravirtual `/dev/kvm` too, with a kernel made for that whose arguments
//! are compiled in (`CONFIG_CMDLINE`); a `firecracker` that was not linked with musl needs `--no-seccomp` there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use crate::initrd;
use crate::vmm::Vmm;

/// A VMM under test.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it is called in the tests' names.
    pub name: &'static str,
    /// Its binary, or why there is none.
    pub binary: Result<PathBuf, String>,
    /// Its version as it tells it; empty without a binary.
    pub version: String,
    /// What it boots, or why it cannot here.
    pub guest: Result<GuestFiles, String>,
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// An uncompressed kernel.
    pub kernel: PathBuf,
    /// An initrd with the kernel's modules; none if everything is built in.
    pub base_initrd: Option<PathBuf>,
    /// A root image with the rest of the kernel's modules, in EROFS.
    pub rootfs: Option<PathBuf>,
    /// Options that the VMM needs for it.
    pub vmm_args: Vec<String>,
    /// Whether it notices keys, or why not.
    pub keyboard: Result<(), String>,
}

impl GuestFiles {
    /// Starts a VMM that is to boot them, as [`Vmm::start`] does, with the options that it needs for that.
    #[must_use]
    pub fn start(&self, binary: &Path, directory: &Path, args: &[&str]) -> Vmm {
        let own = self.vmm_args.iter().map(String::as_str);
        let args: Vec<_> = own.chain(args.iter().copied()).collect();
        Vmm::start(binary, directory, &args)
    }
}

impl Subject {
    /// `firecracker-tcg` of this build. `test_program` is the path of the running test.
    #[must_use]
    pub fn emulated(test_program: &Path) -> Self {
        let binary = match env::var_os("FC_BIN_DIR") {
            Some(directory) => PathBuf::from(directory),
            // target/<triple>/<profile>/deps/<test>
            None => test_program
                .ancestors()
                .nth(2)
                .map(PathBuf::from)
                .unwrap_or_default(),
        }
        .join("firecracker-tcg");
        Self::new("firecracker-tcg", existing(&binary), emulated_guest())
    }

    /// The machine's `firecracker`.
    #[must_use]
    pub fn real() -> Self {
        let binary = match env::var_os("FIRECRACKER_BIN") {
            Some(path) => existing(Path::new(&path)),
            None => Err("FIRECRACKER_BIN names no firecracker".into()),
        };
        Self::new("firecracker", binary, real_guest())
    }

    fn new(
        name: &'static str,
        binary: Result<PathBuf, String>,
        guest: Result<GuestFiles, String>,
    ) -> Self {
        let version = binary.as_deref().map(version).unwrap_or_default();
        Self {
            name,
            binary,
            version,
            guest,
        }
    }
}

/// `Firecracker v1.15.1` is what the first line says; that it does is for a case to find out.
fn version(binary: &Path) -> String {
    let output = Command::new(binary).arg("--version").output();
    let text = output.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
    let text = text.unwrap_or_default();
    let word = text.lines().next().and_then(|line| line.split(' ').nth(1));
    word.unwrap_or_default().trim_start_matches('v').to_owned()
}

fn emulated_guest() -> Result<GuestFiles, String> {
    let directory = env::var_os("FC_GUEST_DIR").ok_or("FC_GUEST_DIR names no guest image")?;
    let directory = PathBuf::from(directory);
    let qemu = env::var_os("FIRECRACKER_TCG_QEMU").unwrap_or("qemu-system-x86_64".into());
    let mut version = Command::new(&qemu);
    version.arg("--version").stdout(Stdio::null());
    if version.status().is_err() {
        return Err(format!("{} is not installed", qemu.display()));
    }
    existing(Path::new(initrd::BUSYBOX)).map_err(|why| why + ": install busybox-static")?;
    Ok(GuestFiles {
        kernel: existing(&directory.join("default-vmlinux.bin"))?,
        base_initrd: Some(existing(&directory.join("default-initrd.img"))?),
        rootfs: Some(existing(&directory.join("default-rootfs.img"))?),
        vmm_args: Vec::new(),
        keyboard: Ok(()),
    })
}

fn real_guest() -> Result<GuestFiles, String> {
    let kernel = env::var_os("FIRECRACKER_KERNEL").ok_or("FIRECRACKER_KERNEL names no kernel")?;
    existing(Path::new("/dev/kvm"))?;
    existing(Path::new(initrd::BUSYBOX)).map_err(|why| why + ": install busybox-static")?;
    let args = env::var("FIRECRACKER_ARGS").unwrap_or_default();
    let kernel = existing(Path::new(&kernel))?;
    Ok(GuestFiles {
        keyboard: has_keyboard(&kernel),
        kernel,
        base_initrd: None,
        rootfs: None,
        vmm_args: args.split_whitespace().map(str::to_owned).collect(),
    })
}

/// Whether the driver of a PC's keyboard is built into an uncompressed kernel: its name is in it then.
fn has_keyboard(kernel: &Path) -> Result<(), String> {
    const DRIVER: &[u8] = b"atkbd";
    let image = fs::read(kernel).map_err(|error| format!("{}: {error}", kernel.display()))?;
    if image.windows(DRIVER.len()).any(|window| window == DRIVER) {
        return Ok(());
    }
    Err("FIRECRACKER_KERNEL has no driver for the keyboard (CONFIG_KEYBOARD_ATKBD)".to_owned())
}

/// The absolute path of what must exist: the VMM has a working directory of its own.
fn existing(path: &Path) -> Result<PathBuf, String> {
    path.canonicalize()
        .map_err(|error| format!("no {}: {error}", path.display()))
}
