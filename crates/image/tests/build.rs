//! Builds images with the real program from a real kernel, and looks into them with the system's tools.
//!
//! The kernel is an unpacked package (`boot/vmlinuz-*`, `lib/modules`): `FC_TEST_KERNEL_DIR`, or what
//! the program itself has downloaded before. The stand-in for agent and initrd program is a static busybox.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fc_proto::image::{INITRD, KERNEL, MANIFEST, Manifest, ROOTFS};

/// What a test needs of the machine.
struct Setup {
    kernel: PathBuf,
    modules: PathBuf,
    busybox: PathBuf,
    dir: tempfile::TempDir,
}

impl Setup {
    /// `None`, with the reason printed, when the machine lacks something.
    fn new() -> Option<Self> {
        let skip = |why: &str| {
            println!("SKIPPED: {why}");
            None
        };
        let Some((modules, kernel)) = unpacked_kernel() else {
            return skip("no kernel: FC_TEST_KERNEL_DIR names none, and none was downloaded yet");
        };
        for tool in ["mkfs.erofs", "fsck.erofs", "dump.erofs", "crun", "cpio"] {
            if !has(tool) {
                return skip(&format!("no {tool} on this machine"));
            }
        }
        let busybox = PathBuf::from("/bin/busybox");
        if !busybox.exists() || succeeds(Command::new("ldd").arg(&busybox)) {
            return skip("no static busybox on this machine");
        }
        Some(Self {
            modules,
            kernel,
            busybox,
            dir: tempfile::tempdir().unwrap(),
        })
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// `firecracker-image build` with everything given; more arguments can follow.
    fn build(&self) -> Command {
        let mut command = self.build_without_kernel();
        command
            .arg("--kernel")
            .arg(&self.kernel)
            .arg("--modules")
            .arg(&self.modules);
        command
    }

    fn build_without_kernel(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firecracker-image"));
        command.arg("build").arg("--output").arg(self.output());
        command
            .arg("--agent")
            .arg(&self.busybox)
            .arg("--initrd-init")
            .arg(&self.busybox);
        command
    }
}

/// The directory of an unpacked kernel package, and the kernel in it.
fn unpacked_kernel() -> Option<(PathBuf, PathBuf)> {
    let entries = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).map_or_else(|_| Vec::new(), |e| e.flatten().map(|e| e.path()).collect())
    };
    let packages = match std::env::var_os("FC_TEST_KERNEL_DIR") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
            entries(&cache.or_else(home)?.join("firecracker-image"))
        }
    };
    packages.into_iter().find_map(|package| {
        let mut boot = entries(&package.join("boot")).into_iter();
        let kernel = boot.find(|f| f.to_string_lossy().contains("/vmlinuz-"))?;
        Some((package, kernel))
    })
}

fn has(tool: &str) -> bool {
    std::env::var("PATH")
        .unwrap_or_default()
        .split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|dir| Path::new(dir).join(tool).exists())
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

fn run(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    assert!(
        status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&stderr)
    );
    String::from_utf8_lossy(&stdout).into_owned()
}

fn fails(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{command:?} should fail");
    String::from_utf8(output.stderr).unwrap()
}

fn manifest(dir: &Path) -> Manifest {
    serde_json::from_slice(&fs::read(dir.join(MANIFEST)).unwrap()).unwrap()
}

fn contents(dir: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    [KERNEL, INITRD, ROOTFS]
        .into_iter()
        .map(|f| (f, fs::read(dir.join(f)).unwrap()))
        .collect()
}

#[test]
fn builds_once_and_the_same_bytes_again() {
    let Some(setup) = Setup::new() else { return };
    let output = setup.output();
    assert!(run(&mut setup.build()).contains("Built"));
    let first = contents(&output);
    assert!(first[KERNEL].starts_with(b"\x7fELF"));
    assert_eq!(first[INITRD].len() % 4096, 0);
    let about = manifest(&output);
    assert!(
        setup
            .kernel
            .to_string_lossy()
            .ends_with(&about.kernel_release)
    );
    assert_eq!(about.protocol, fc_proto::guest::PROTOCOL);
    assert!(
        (64..512).contains(&about.min_memory_mib),
        "{}",
        about.min_memory_mib
    );

    assert!(run(&mut setup.build()).contains("is up to date"));
    assert!(run(setup.build().arg("--force")).contains("Built"));
    assert!(
        contents(&output) == first,
        "the same inputs give the same bytes"
    );
    assert!(
        run(Command::new(env!("CARGO_BIN_EXE_firecracker-image"))
            .arg("inspect")
            .arg(&output))
        .contains("All files are intact")
    );
    let left: Vec<_> = fs::read_dir(&output)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 5, "three files, manifest and lock: {left:?}");
}

#[test]
fn the_initrd_holds_what_leads_to_the_root() {
    let Some(setup) = Setup::new() else { return };
    run(&mut setup.build());
    let cpio = |args: &[&str]| {
        let image = fs::File::open(setup.output().join(INITRD)).unwrap();
        let unpacked = setup.dir.path().join("initrd");
        fs::create_dir_all(&unpacked).unwrap();
        run(Command::new("cpio")
            .args(args)
            .stdin(image)
            .current_dir(unpacked))
    };
    let list = cpio(&["--quiet", "-it"]);
    assert!(list.lines().any(|l| l == "init"), "{list}");
    cpio(&["--quiet", "-id", "init", "modules/*"]);
    let order = fs::read_to_string(setup.dir.path().join("initrd/modules/order")).unwrap();
    let position = |name: &str| {
        order
            .lines()
            .position(|l| l == format!("/modules/{name}.ko"))
    };
    // A kernel may have some of them built in, but one before what needs it otherwise.
    for (module, needs) in [
        ("virtio_blk", "virtio"),
        ("vmw_vsock_virtio_transport", "vsock"),
    ] {
        assert!(position(needs) <= position(module), "{order}");
    }
    for path in order.lines() {
        let module = fs::read(setup.dir.path().join("initrd").join(&path[1..])).unwrap();
        assert!(
            module.starts_with(b"\x7fELF"),
            "{path} is an uncompressed module"
        );
    }
}

#[test]
fn the_root_image_is_sound_and_complete() {
    let Some(setup) = Setup::new() else { return };
    run(&mut setup.build());
    let image = setup.output().join(ROOTFS);
    run(Command::new("fsck.erofs").arg(&image));
    let stat = |path: &str| {
        let output = Command::new("dump.erofs")
            .arg(format!("--path={path}"))
            .arg(&image)
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    for path in [
        "/usr/sbin/init",
        "/usr/local/bin/agent",
        "/usr/local/bin/volume-init",
        "/usr/bin/crun",
        "/usr/bin/runc",
        "/proc",
        "/sys",
        "/dev",
        "/run",
        "/tmp",
        "/container",
        "/volumes",
        "/etc/resolv.conf",
        "/etc/passwd",
        "/etc/hosts",
        "/var",
    ] {
        let text = stat(path);
        assert!(text.contains("Uid: 0   Gid: 0"), "{path}: {text}");
    }
    let release = manifest(&setup.output()).kernel_release;
    assert!(stat(&format!("/usr/lib/modules/{release}/modules.dep")).contains("File :"));
}

#[test]
fn the_packed_runtime_starts_in_its_root() {
    let Some(setup) = Setup::new() else { return };
    run(&mut setup.build());
    let root = setup.dir.path().join("root");
    fs::create_dir(&root).unwrap();
    // In a mount namespace of its own, so that nothing stays mounted. The runtime needs /proc.
    let in_root = |then: &str| {
        let script = format!(
            "mount -t erofs -o loop,ro \"$1\" \"$2\" && mount --bind /proc \"$2/proc\" && {then}"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]);
        command.arg(setup.output().join(ROOTFS)).arg(&root);
        command
    };
    if !succeeds(&mut in_root("true")) {
        println!(
            "SKIPPED: EROFS images cannot be mounted here (needs root and the kernel's erofs)"
        );
        return;
    }
    let version = run(&mut in_root("chroot \"$2\" /usr/bin/runc --version"));
    assert!(version.contains("crun version"), "{version}");
    let modes = run(&mut in_root(
        "stat -c %a:%u:%g \"$2/tmp\" \"$2/root\" \"$2/usr/sbin/init\"",
    ));
    assert_eq!(modes, "1777:0:0\n700:0:0\n755:0:0\n");
}

#[test]
fn a_kernel_with_everything_built_in_has_no_initrd() {
    let Some(setup) = Setup::new() else { return };
    run(&mut setup.build());
    let output = setup.output();
    assert!(output.join(INITRD).exists());
    run(setup
        .build_without_kernel()
        .arg("--kernel")
        .arg(output.join(KERNEL)));
    assert!(
        !output.join(INITRD).exists(),
        "the old kernel's initrd is gone"
    );
    assert!(!manifest(&output).files.contains_key(INITRD));
}

#[test]
fn several_builds_at_once_leave_one_whole_image() {
    let Some(setup) = Setup::new() else { return };
    let children: Vec<_> = (0..3)
        .map(|_| setup.build().stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    let texts: Vec<_> = children
        .into_iter()
        .map(|c| String::from_utf8(c.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let built = texts.iter().filter(|t| t.contains("Built")).count();
    let current = texts.iter().filter(|t| t.contains("up to date")).count();
    assert_eq!((built, current), (1, 2), "{texts:?}");
}

#[test]
fn a_changed_input_and_a_damaged_output_are_noticed() {
    let Some(setup) = Setup::new() else { return };
    let agent = setup.dir.path().join("agent");
    fs::copy(&setup.busybox, &agent).unwrap();
    // The later of two --agent would be refused, so this is its own command line.
    let mut build = Command::new(env!("CARGO_BIN_EXE_firecracker-image"));
    build
        .arg("build")
        .arg("--output")
        .arg(setup.output())
        .arg("--agent")
        .arg(&agent);
    build.arg("--initrd-init").arg(&setup.busybox);
    build
        .arg("--kernel")
        .arg(&setup.kernel)
        .arg("--modules")
        .arg(&setup.modules);
    run(&mut build);
    let mut changed = fs::read(&agent).unwrap();
    changed.push(0);
    fs::write(&agent, changed).unwrap();
    assert!(run(&mut build).contains("Built"));

    let image = setup.output().join(ROOTFS);
    let mut bytes = fs::read(&image).unwrap();
    bytes[5000] ^= 1;
    fs::write(&image, bytes).unwrap();
    let mut inspect = Command::new(env!("CARGO_BIN_EXE_firecracker-image"));
    let error = fails(inspect.arg("inspect").arg(setup.output()));
    assert!(
        error.contains("content differs from the manifest"),
        "{error}"
    );
    fs::write(&image, b"cut").unwrap();
    assert!(run(&mut build).contains("Built"));
}

#[test]
fn errors_name_the_cause() {
    let Some(setup) = Setup::new() else { return };
    let script = setup.dir.path().join("script");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    let error = fails(setup.build_without_kernel().arg("--kernel").arg(&script));
    assert!(error.contains("Not a kernel"), "{error}");
    let error = fails(setup.build().arg("--runtime").arg(&script));
    assert!(error.contains("not a 64-bit ELF file"), "{error}");
    let error = fails(
        setup
            .build_without_kernel()
            .arg("--kernel")
            .arg("/nonexistent/vmlinux"),
    );
    assert!(
        error.contains("/nonexistent/vmlinux: No such file"),
        "{error}"
    );
    let mut build = setup.build_without_kernel();
    build
        .arg("--kernel")
        .arg(&setup.kernel)
        .arg("--modules")
        .arg(setup.dir.path());
    let error = fails(&mut build);
    assert!(error.contains("No modules of kernel"), "{error}");
    assert!(!setup.output().join(MANIFEST).exists());
}
