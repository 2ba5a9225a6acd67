//! Boots real VMs from requests. Needs root, a VMM (`FIRECRACKER_BIN`, or firecracker-tcg in `FC_BIN_DIR`) and a
//! guest (`FC_GUEST_DIR`); `make test` sets them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fc_config::Config;
use fc_drives::{Attach, Kind};
use fc_proto::control::{
    CreateVMRequest, DriveExposePolicy, FirecrackerBalloonDevice, FirecrackerDriveMount,
    FirecrackerMachineConfiguration, FirecrackerNetworkInterface, FirecrackerRateLimiter,
    FirecrackerRootDrive, FirecrackerTokenBucket, JailerConfig, StaticNetworkConfiguration,
};
use fc_proto::protobuf::MessageField;
use fc_vm::dir::VmDir;
use fc_vm::machine::{
    BootError, Class, Connection, Machine, Progress, StopError, VmSpec, WaitsFor, boot,
    host_is_intel,
};
use fc_vm::process::ProcessId;
use fc_vm::state::{self, State};
use fc_vm::timeline::Timeline;

/// What the tests use of the machine.
struct Host {
    config: Config,
    base: tempfile::TempDir,
}

impl Host {
    /// `None`, said aloud, where something is missing.
    fn find() -> Option<Self> {
        let missing = |what: &str| {
            println!("SKIPPED: {what}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return missing("needs root");
        }
        let var = |name| std::env::var_os(name).map(PathBuf::from);
        let vmm =
            var("FIRECRACKER_BIN").or_else(|| Some(var("FC_BIN_DIR")?.join("firecracker-tcg")));
        let Some(vmm) = vmm.filter(|path| path.exists()) else {
            return missing("no VMM (FIRECRACKER_BIN, FC_BIN_DIR)");
        };
        let Some(guest) = var("FC_GUEST_DIR").filter(|dir| dir.join("default-rootfs.img").exists())
        else {
            return missing("no guest (FC_GUEST_DIR)");
        };
        Some(Self {
            config: Config {
                firecracker_binary_path: Some(vmm),
                kernel_image_path: guest.join("default-vmlinux.bin"),
                initrd_path: Some(guest.join("default-initrd.img")).filter(|path| path.exists()),
                root_drive: guest.join("default-rootfs.img"),
                ..Config::default()
            },
            base: tempfile::tempdir().unwrap(),
        })
    }

    /// Boots the VM of a request in a directory with the longest name there is.
    async fn boot(
        &self,
        request: &CreateVMRequest,
        progress: &Progress,
    ) -> (Leftovers, Result<Machine, BootError>) {
        let dir = VmDir::new(
            &self.base.path().join("vms"),
            &"n".repeat(76),
            &request.VMID,
        )
        .unwrap();
        std::fs::create_dir_all(dir.path()).unwrap();
        let spec = VmSpec::new(&self.config, request, host_is_intel()).unwrap();
        let mut state = State::new(&dir);
        let timeline = Timeline::default();
        let machine = boot(&dir, &self.config, spec, &mut state, &timeline, progress).await;
        (Leftovers(dir), machine)
    }

    /// An ext4 image with one file.
    fn image(&self, name: &str) -> String {
        let content = self.base.path().join("content");
        std::fs::create_dir_all(&content).unwrap();
        std::fs::write(content.join("hello"), "hello").unwrap();
        let image = self.base.path().join(name);
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-d"])
            .arg(&content)
            .arg(&image)
            .arg("4M")
            .output();
        assert!(made.unwrap().status.success());
        image.display().to_string()
    }
}

/// The directory of a VM, whose leftovers go also when the test fails.
struct Leftovers(VmDir);

impl Leftovers {
    /// Removes what a VM that ended left, which must work and be all.
    fn undo(&self) {
        let failed = state::undo(&self.0);
        assert!(failed.is_empty(), "{failed:?}");
        assert!(!self.0.path().exists());
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if self.0.path().exists() {
            println!("undone after a failure: {:?}", state::undo(&self.0));
        }
    }
}

impl Host {
    /// Puts the VMM where it can have a list of what a jail must show it, and names the jail's template and runtime.
    fn with_jailer(&mut self, runtime: &str) {
        let vmm = self.config.firecracker_binary_path.take().unwrap();
        let linked = self.base.path().join("vmm");
        std::os::unix::fs::symlink(&vmm, &linked).unwrap();
        // Firecracker has no such option, and needs no list.
        let paths = Command::new(&vmm)
            .arg("--print-jail-paths")
            .output()
            .unwrap();
        if paths.status.success() {
            std::fs::write(self.base.path().join("vmm.jail.json"), paths.stdout).unwrap();
        }
        self.config.firecracker_binary_path = Some(linked);
        let template = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/firecracker-runc-config.json"
        );
        self.config.jailer.runc_config_path = template.into();
        self.config.jailer.runc_binary_path = Some(runtime.into());
    }
}

/// A tap that goes with the test.
struct Tap(String);

impl Tap {
    fn new() -> Self {
        let name = format!("fcvm{}", std::process::id());
        let made = Command::new("ip")
            .args(["tuntap", "add", "mode", "tap", "name", &name])
            .status();
        assert!(made.unwrap().success());
        Self(name)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

fn request() -> CreateVMRequest {
    CreateVMRequest {
        VMID: "v".repeat(76),
        MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
            MemSizeMib: 192,
            VcpuCount: 1,
            ..FirecrackerMachineConfiguration::default()
        }),
        TimeoutSeconds: 120,
        ..CreateVMRequest::default()
    }
}

fn mount(host_path: String, vm_path: &str) -> FirecrackerDriveMount {
    FirecrackerDriveMount {
        HostPath: host_path,
        VMPath: vm_path.into(),
        FilesystemType: "ext4".into(),
        ..FirecrackerDriveMount::default()
    }
}

fn limit() -> MessageField<FirecrackerRateLimiter> {
    MessageField::some(FirecrackerRateLimiter {
        Bandwidth: MessageField::some(FirecrackerTokenBucket {
            RefillTime: 100,
            Capacity: 100 << 20,
            ..FirecrackerTokenBucket::default()
        }),
        ..FirecrackerRateLimiter::default()
    })
}

#[tokio::test]
async fn every_field_takes_effect() {
    let Some(host) = Host::find() else { return };
    let tap = Tap::new();
    let log = host.base.path().join("log-fifo");
    let request = CreateVMRequest {
        KernelArgs: format!("{} zz.last=1 aa.first=2", host.config.kernel_args),
        RootDrive: MessageField::some(FirecrackerRootDrive {
            HostPath: host.config.root_drive.display().to_string(),
            CacheType: "Writeback".into(),
            RateLimiter: limit(),
            ..FirecrackerRootDrive::default()
        }),
        DriveMounts: vec![
            FirecrackerDriveMount {
                Options: vec!["noatime".into()],
                IsWritable: true,
                CacheType: "Writeback".into(),
                RateLimiter: limit(),
                ..mount(host.image("rw.img"), "/run/rw")
            },
            mount(host.image("ro.img"), "/run/ro"),
        ],
        NetworkInterfaces: vec![FirecrackerNetworkInterface {
            InRateLimiter: limit(),
            StaticConfig: MessageField::some(StaticNetworkConfiguration {
                HostDevName: tap.0.clone(),
                MacAddress: "06:00:ac:10:00:02".into(),
                ..StaticNetworkConfiguration::default()
            }),
            ..FirecrackerNetworkInterface::default()
        }],
        BalloonDevice: MessageField::some(FirecrackerBalloonDevice {
            AmountMib: 8,
            DeflateOnOom: true,
            StatsPollingIntervals: 1,
            ..FirecrackerBalloonDevice::default()
        }),
        ContainerCount: 2,
        VolumeSlots: 1,
        LogFifoPath: log.display().to_string(),
        ..request()
    };
    let progress = Progress::default();
    let (dir, machine) = host.boot(&request, &progress).await;
    let machine = machine.unwrap();

    let config = machine.vmm().vm_config().await.unwrap();
    let drives: Vec<_> = config["drives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|drive| {
            (
                drive["is_read_only"].as_bool().unwrap(),
                drive["cache_type"].as_str().unwrap(),
            )
        })
        .collect();
    // The root device, containers, drive mounts, images (two for each container), volumes.
    let mut expected = vec![(true, "Writeback"), (false, "Unsafe"), (false, "Unsafe")];
    expected.extend([(false, "Writeback"), (true, "Unsafe")]);
    expected.extend([(true, "Unsafe"); 4]);
    expected.push((false, "Unsafe"));
    assert_eq!(drives, expected, "{config:#}");
    assert_eq!(
        config["drives"][3]["rate_limiter"]["bandwidth"]["size"],
        100 << 20
    );
    assert_eq!(config["machine-config"]["mem_size_mib"], 192);
    assert_eq!(config["balloon"]["amount_mib"], 8);
    let args = config["boot-source"]["boot_args"].as_str().unwrap();
    assert!(args.ends_with("zz.last=1 aa.first=2"), "{args}");
    let interface = &config["network-interfaces"][0];
    assert_eq!(interface["iface_id"], "1");
    assert_eq!(interface["host_dev_name"], tap.0.as_str());
    assert_eq!(interface["guest_mac"], "06:00:ac:10:00:02");
    assert_eq!(
        interface["rx_rate_limiter"]["bandwidth"]["refill_time"],
        100
    );

    for (index, name) in [(3, "drivemntstub0"), (4, "drivemntstub1")] {
        let path = config["drives"][index]["path_on_host"].as_str().unwrap();
        assert_eq!(path, format!("{name}.attached"));
    }

    assert_eq!(progress.vmm().unwrap().pid, machine.vmm_pid());
    let own: Duration = progress
        .spans()
        .iter()
        .filter(|span| span.waits_for == WaitsFor::Nobody)
        .map(|span| span.duration)
        .sum();
    println!("our own part: {own:?}; {:#?}", progress.spans());

    machine.stop(Duration::from_secs(30)).await.unwrap();
    drop(machine);
    dir.undo();
    assert!(!log.exists());
}

#[tokio::test]
async fn a_drive_mount_that_fails_fails_the_boot_and_leaves_nothing() {
    let Some(host) = Host::find() else { return };
    let garbage = host.base.path().join("garbage.img");
    std::fs::write(&garbage, vec![0x5a; 1 << 20]).unwrap();
    let request = CreateVMRequest {
        DriveMounts: vec![
            mount(host.image("good.img"), "/run/good"),
            mount(garbage.display().to_string(), "/run/bad"),
        ],
        ..request()
    };
    let progress = Progress::default();
    let (dir, machine) = host.boot(&request, &progress).await;
    let error = machine.err().unwrap();
    assert_eq!(error.class(), Class::Precondition);
    let text = fc_vm::machine::chain(&error);
    assert!(
        text.starts_with("DriveMounts[1]") && text.contains("garbage.img"),
        "{text}"
    );
    let vmm = progress.vmm().unwrap().pid;
    assert!(!Path::new(&format!("/proc/{vmm}")).exists());
    dir.undo();
}

#[tokio::test]
async fn a_paused_vm_is_killed_when_it_is_stopped() {
    let Some(host) = Host::find() else { return };
    let (dir, machine) = host.boot(&request(), &Progress::default()).await;
    let machine = machine.unwrap();
    machine.vmm().pause().await.unwrap();
    let stopped = machine.stop(Duration::from_secs(60)).await;
    assert!(matches!(stopped, Err(StopError::Paused)), "{stopped:?}");
    assert!(machine.end().is_some());
    drop(machine);
    dir.undo();
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again() {
    let Some(host) = Host::find() else { return };
    let (dir, machine) = host.boot(&request(), &Progress::default()).await;
    let machine = machine.unwrap();
    let guest = machine.guest().clone();
    let mut connection = guest.connection();
    for number in 2..5 {
        let waiting = {
            let guest = guest.clone();
            let wait = fc_proto::guest::NextEventRequest::default();
            tokio::spawn(async move { guest.agent().next_event(guest.context(), &wait).await })
        };
        tokio::task::yield_now().await;
        guest.break_connection();
        assert!(waiting.await.unwrap().is_err());
        assert!(guest.connected().await);
        let up = connection.wait_for(|c| *c == Connection::Up(number)).await;
        drop(up.unwrap());
        // Through the new connection, by one who has known the guest since before it.
        let attach = Attach {
            host_path: host.image("disk.img").into(),
            destination: "/container/c/disk".into(),
            fstype: "ext4".into(),
            options: Vec::new(),
            owner: format!("c{number}"),
        };
        machine
            .drives()
            .attach(Kind::Writable, attach)
            .await
            .unwrap();
        machine
            .drives()
            .detach_owner(&format!("c{number}"))
            .await
            .unwrap();
    }
    machine.stop(Duration::from_secs(30)).await.unwrap();
    connection
        .wait_for(|c| *c == Connection::Gone)
        .await
        .unwrap();
    assert!(!guest.connected().await);
    drop(machine);
    dir.undo();
}

/// An id of the greatest length that no other test has.
fn vm_id(name: &str) -> String {
    format!("{:v<76}", format!("{name}-{}-", std::process::id()))
}

fn jail(policy: DriveExposePolicy) -> MessageField<JailerConfig> {
    MessageField::some(JailerConfig {
        UID: 300_001,
        GID: 300_002,
        DriveExposePolicy: policy.into(),
        ..JailerConfig::default()
    })
}

async fn jailed(policy: DriveExposePolicy) {
    let Some(mut host) = Host::find() else { return };
    host.with_jailer("runc");
    let vm_id = vm_id(&format!("{policy:?}"));
    let request = CreateVMRequest {
        VMID: vm_id.clone(),
        DriveMounts: vec![FirecrackerDriveMount {
            IsWritable: true,
            ..mount(host.image("data.img"), "/run/data")
        }],
        LogFifoPath: host.base.path().join("log-fifo").display().to_string(),
        JailerConfig: jail(policy),
        ..request()
    };
    let progress = Progress::default();
    let (dir, machine) = host.boot(&request, &progress).await;
    let machine = machine.unwrap_or_else(|error| panic!("{}", fc_vm::machine::chain(&error)));
    assert!(machine.is_jailed());
    let cgroup = machine.cgroup_path().unwrap();
    assert!(cgroup.ends_with(&vm_id), "{cgroup}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.vmm_pid())).unwrap();
    assert!(status.contains("Uid:\t300001\t300001"), "{status}");
    for path in [
        machine.api_socket(),
        machine.vsock(),
        machine.log_fifo().into(),
    ] {
        assert!(path.exists(), "{}", path.display());
    }

    let attach = Attach {
        host_path: host.image("disk.img").into(),
        destination: "/container/c/disk".into(),
        fstype: "ext4".into(),
        options: Vec::new(),
        owner: "c".into(),
    };
    machine
        .drives()
        .attach(Kind::Writable, attach)
        .await
        .unwrap();
    machine.drives().detach_owner("c").await.unwrap();
    let port = machine.ports().listen(11_000).unwrap();
    let group = port.path().metadata().unwrap().gid();
    assert_eq!(
        group, 300_002,
        "the guest's connections are made by the jail's user"
    );
    drop(port);
    println!("{:#?}", progress.spans());

    machine.stop(Duration::from_secs(30)).await.unwrap();
    let failed = machine.close().await;
    assert!(failed.is_empty(), "{failed:?}");
    drop(machine);
    dir.undo();
}

#[tokio::test]
async fn in_a_jail_with_copies() {
    jailed(DriveExposePolicy::COPY).await;
}

#[tokio::test]
async fn in_a_jail_with_the_files_themselves() {
    jailed(DriveExposePolicy::BIND).await;
}

#[tokio::test]
async fn a_jail_that_cannot_be_made_leaves_nothing() {
    let Some(mut host) = Host::find() else { return };
    host.with_jailer("/no/such/runc");
    let request = CreateVMRequest {
        VMID: vm_id("none"),
        JailerConfig: jail(DriveExposePolicy::BIND),
        ..request()
    };
    let (dir, machine) = host.boot(&request, &Progress::default()).await;
    let text = fc_vm::machine::chain(&machine.err().unwrap());
    assert!(text.contains("/no/such/runc"), "{text}");
    dir.undo();
}

#[tokio::test]
async fn what_a_killed_shim_leaves_is_undone() {
    let Some(mut host) = Host::find() else { return };
    host.with_jailer("runc");
    for jailer_config in [jail(DriveExposePolicy::BIND), MessageField::none()] {
        let request = CreateVMRequest {
            VMID: vm_id("killed"),
            DriveMounts: vec![mount(host.image("data.img"), "/run/data")],
            JailerConfig: jailer_config,
            ..request()
        };
        let (dir, machine) = host.boot(&request, &Progress::default()).await;
        let machine = machine.unwrap();
        let vmm = ProcessId::of(machine.vmm_pid()).unwrap();
        let cgroup = machine.cgroup_path().map(str::to_owned);
        // Nothing of what a shim does at its end happens to a shim that is killed.
        std::mem::forget(machine);
        assert!(vmm.is_alive());
        dir.undo();
        assert!(!vmm.is_alive());
        let groups = std::fs::read_dir("/sys/fs/cgroup").unwrap();
        for group in groups.flatten() {
            let Some(cgroup) = &cgroup else { continue };
            let left = group.path().join(cgroup.trim_start_matches('/'));
            assert!(!left.exists(), "{}", left.display());
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&request.VMID));
    }
}
