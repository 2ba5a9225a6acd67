//! A real VM in a jail: `FIRECRACKER_BIN` is the VMM, or else `firecracker-tcg` in `FC_BIN_DIR`, and `FC_GUEST_DIR`
//! has the guest image.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fc_client::api::{BootSource, Drive, DriveUpdate, Logger, MachineConfig, Vsock};
use fc_client::{FifoDrain, Vmm};
use fc_host_file::{Access, HostFile};
use fc_jailer::{ExposePolicy, Jailer, Role, Runc, Start};

use crate::Test;
use crate::host::{Host, Runtime, block_on, link, open};
use crate::security::end;

pub const TESTS: &[(&str, Test)] = &[
    ("boot::a_vm", a_vm),
    ("boot::without_its_list", without_its_list),
];

/// Why a VM cannot boot here.
pub fn missing() -> Option<String> {
    let set = |name| std::env::var_os(name).is_some();
    if !set("FIRECRACKER_BIN") && !set("FC_BIN_DIR") {
        Some("neither FIRECRACKER_BIN nor FC_BIN_DIR is set".to_owned())
    } else if !set("FC_GUEST_DIR") {
        Some("FC_GUEST_DIR is not set".to_owned())
    } else {
        None
    }
}

/// A file in the directory that an environment variable names.
pub fn path(variable: &str, name: &str) -> PathBuf {
    Path::new(&std::env::var_os(variable).unwrap()).join(name)
}

/// The VMM.
pub fn program() -> PathBuf {
    let configured = std::env::var_os("FIRECRACKER_BIN").map(PathBuf::from);
    configured.unwrap_or_else(|| path("FC_BIN_DIR", "firecracker-tcg"))
}

/// The VMM beside the test's own files, with what it says that it needs; Firecracker says nothing, and needs nothing.
fn install(host: &mut Host) {
    let vmm = host.base.path().join("vmm-of-the-host");
    link(&program(), &vmm);
    let needs = std::process::Command::new(&vmm)
        .arg("--print-jail-paths")
        .output()
        .unwrap();
    if needs.status.success() {
        fs::write(vmm.with_extension("jail.json"), needs.stdout).unwrap();
    }
    host.vmm = vmm;
}

fn a_vm(runtime: &Runtime) {
    block_on(async {
        for policy in [ExposePolicy::Bind, ExposePolicy::Copy] {
            let mut host = Host::new(runtime);
            install(&mut host);
            host.request.policy = policy;
            // Nobody's but root's, as on a careful host.
            let disk = host.base.path().join("disk");
            fs::write(&disk, vec![7; 1 << 20]).unwrap();
            let log = host.base.path().join("log.fifo");
            let drain = FifoDrain::log(&log).unwrap();

            let start = Instant::now();
            let jail = host.prepare().await;
            let prepared = start.elapsed();
            let options = Start {
                log: Some(drain.shared_tail()),
                ..Start::default()
            };
            let (files, announcements) = show(&jail, &log).await;
            let shown = start.elapsed();
            let vmm = jail.start(options).await.unwrap();
            let started = start.elapsed();
            boot(&vmm, &files).await;
            jail.seal("firecracker.vsock").unwrap();
            let bound = Duration::from_secs(300);
            let announced = tokio::time::timeout(bound, announcements.accept()).await;
            announced.expect("the agent announces itself").unwrap();
            println!(
                "{}, {policy:?}: prepare {prepared:?}, show {:?}, start {:?}, boot {:?}",
                runtime.name(),
                shown - prepared,
                started - shown,
                start.elapsed() - started
            );
            swaps(&jail, &vmm, &disk).await;
            end(jail, vmm, &host).await;
        }
    });
}

/// `firecracker-tcg` alone: it says how its list is made.
fn without_its_list(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        host.vmm = host.base.path().join("firecracker-tcg");
        link(&program(), &host.vmm);
        let told = std::process::Command::new(&host.vmm)
            .arg("--print-jail-paths")
            .output();
        if !told.unwrap().status.success() {
            println!("SKIPPED: the VMM is Firecracker, which needs no list");
            return;
        }
        let jail = host.prepare().await;
        let kernel = path("FC_GUEST_DIR", "default-vmlinux.bin");
        let kernel = jail.show(Role::Kernel, &kernel).await.unwrap();
        let vmm = jail.start(Start::default()).await.unwrap();
        let api = vmm.client();
        api.put_boot_source(&BootSource {
            kernel_image_path: kernel,
            initrd_path: None,
            boot_args: None,
        })
        .await
        .unwrap();
        let refused = api.start_instance().await.expect_err("it sees no QEMU");
        let said = format!("{refused:?}");
        assert!(
            said.contains("firecracker-tcg --print-jail-paths"),
            "{said}"
        );
        end(jail, vmm, &host).await;
    });
}

/// What the VMM's API is told.
struct Files {
    kernel: String,
    initrd: String,
    root: String,
    log: String,
}

async fn show(jail: &Runc, log: &Path) -> (Files, fc_vsock::Listener) {
    let mut stub = fs::File::create(jail.root().join("ctrstub0")).unwrap();
    stub.write_all(&[0; 512]).unwrap();
    jail.share("ctrstub0").unwrap();
    let vsock = jail.root().join("firecracker.vsock");
    let listener = fc_vsock::Listener::bind(&vsock, 9001).unwrap();
    jail.share("firecracker.vsock_9001").unwrap();
    let guest = |name| path("FC_GUEST_DIR", name);
    let root = HostFile::open(&guest("default-rootfs.img"), Access::Read).unwrap();
    let files = Files {
        kernel: jail
            .show(Role::Kernel, &guest("default-vmlinux.bin"))
            .await
            .unwrap(),
        initrd: jail
            .show(Role::Initrd, &guest("default-initrd.img"))
            .await
            .unwrap(),
        root: jail.show_root(&root, true).unwrap(),
        log: jail.show_fifo("fc-logs.fifo", log).await.unwrap(),
    };
    (files, listener)
}

async fn boot(vmm: &Vmm, files: &Files) {
    let api = vmm.client();
    let logger = Logger {
        log_path: Some(files.log.clone()),
        level: None,
        show_level: None,
        show_log_origin: None,
    };
    api.put_logger(&logger).await.unwrap();
    api.put_machine_config(&MachineConfig::new(1, 128))
        .await
        .unwrap();
    let arguments = "console=ttyS0 quiet reboot=k panic=1 pci=off 8250.nr_uarts=1";
    api.put_boot_source(&BootSource {
        kernel_image_path: files.kernel.clone(),
        initrd_path: Some(files.initrd.clone()),
        boot_args: Some(arguments.to_owned()),
    })
    .await
    .unwrap();
    let root = Drive {
        is_root_device: true,
        ..Drive::new("root_drive", &files.root, true)
    };
    api.put_drive(&root).await.unwrap();
    api.put_drive(&Drive::new("stub", "ctrstub0", false))
        .await
        .unwrap();
    api.put_vsock(&Vsock {
        guest_cid: 3,
        uds_path: "firecracker.vsock".to_owned(),
    })
    .await
    .unwrap();
    api.start_instance().await.unwrap();
}

/// A file behind a drive, and the stub again, several times.
async fn swaps(jail: &Runc, vmm: &Vmm, disk: &Path) {
    let exposer = jail.exposer();
    let api = vmm.client();
    for _ in 0..3 {
        let file = jail.drive_file(open(disk), false).unwrap();
        let file = file.complete().await.unwrap();
        let name = exposer
            .expose("ctrstub0.attached", &file, false)
            .await
            .unwrap();
        api.patch_drive(&DriveUpdate::path("stub", name))
            .await
            .unwrap();
        // Not while the VMM has it open.
        assert!(exposer.withdraw("ctrstub0.attached").await.is_err());
        api.patch_drive(&DriveUpdate::path("stub", "ctrstub0"))
            .await
            .unwrap();
        exposer.withdraw("ctrstub0.attached").await.unwrap();
    }
    api.pause().await.unwrap();
    api.resume().await.unwrap();
}
