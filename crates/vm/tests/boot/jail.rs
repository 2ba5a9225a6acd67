//! VMs in jails, and what is left when somebody is killed or gives up.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use fc_drives::{Attach, Kind};
use fc_host_file::{Access, HostFile};
use fc_proto::control::{CreateVMRequest, DriveExposePolicy, FirecrackerDriveMount, JailerConfig};
use fc_proto::protobuf::MessageField;
use fc_vm::machine::Progress;
use fc_vm::process::ProcessId;

use super::host::{BOUND, Host, mount, request};

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
    let dir = host.dir(&request.VMID);
    let machine = host.boot(&dir, &request, &progress).await;
    let machine = machine.unwrap_or_else(|error| panic!("{}", fc_errors::chain(&error)));
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
        file: HostFile::open(host.image("disk.img").as_ref(), Access::Write).unwrap(),
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

    machine.stop(BOUND).await.unwrap();
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
    let dir = host.dir(&request.VMID);
    let machine = host.boot(&dir, &request, &Progress::default()).await;
    let text = fc_errors::chain(&machine.err().unwrap());
    assert!(text.contains("/no/such/runc"), "{text}");
    dir.undo();
}

/// Whatever else fails when a copy of the root drive has filled the disk.
#[tokio::test]
async fn a_disk_that_is_full_of_copies_is_the_reason() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    let Some(mut host) = Host::find() else { return };
    host.with_jailer("runc");
    let image = host.base.path().join("root.img");
    std::fs::write(&image, vec![1; 8 << 20]).unwrap();
    host.config.root_drive = image.clone();
    let vms = host.base.path().join("vms");
    std::fs::create_dir(&vms).unwrap();
    mount("none", &vms, "tmpfs", MountFlags::empty(), Some(c"size=4m")).unwrap();
    for _ in 0..5 {
        let request = CreateVMRequest {
            VMID: vm_id("full"),
            JailerConfig: jail(DriveExposePolicy::COPY),
            ..request()
        };
        let dir = host.dir(&request.VMID);
        let machine = host.boot(&dir, &request, &Progress::default()).await;
        let text = fc_errors::chain(&machine.err().unwrap());
        for words in [
            image.to_str().unwrap(),
            vms.to_str().unwrap(),
            "No space left",
        ] {
            assert!(text.contains(words), "{text}");
        }
        dir.undo();
    }
    // A process that another test is just starting may have a file of it open.
    unmount(&vms, UnmountFlags::DETACH).unwrap();
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
        let dir = host.dir(&request.VMID);
        let machine = host.boot(&dir, &request, &Progress::default()).await;
        let machine = machine.unwrap();
        let vmm = ProcessId::of(machine.vmm_pid()).unwrap();
        // Nothing of what a shim does at its end happens to a shim that is killed.
        std::mem::forget(machine);
        assert!(vmm.is_alive());
        dir.undo();
        assert!(!vmm.is_alive());
        nothing_left(&request.VMID);
    }
}

/// Asserts that no process, cgroup or mount of the VM is left.
fn nothing_left(vm_id: &str) {
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        // The VMM's own name for the VM is shorter.
        if !String::from_utf8_lossy(&command).contains(&vm_id[..40]) {
            continue;
        }
        // The VMM's own children die with it, a moment later.
        let pid = process.file_name().to_string_lossy().parse();
        let gone = ProcessId::of(pid.unwrap()).is_none_or(|process| process.wait(BOUND).unwrap());
        assert!(gone, "{}", String::from_utf8_lossy(&command));
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let group = hierarchy.path().join("firecracker-containerd").join(vm_id);
        assert!(!group.exists(), "{}", group.display());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(vm_id));
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    let Some(mut host) = Host::find() else { return };
    host.with_jailer("runc");
    for jailer_config in [jail(DriveExposePolicy::BIND), MessageField::none()] {
        // From before the VMM to a guest that boots.
        for bound in [0, 5, 20, 50, 100, 200, 400, 800, 1600].map(Duration::from_millis) {
            let request = CreateVMRequest {
                VMID: vm_id("given-up"),
                JailerConfig: jailer_config.clone(),
                ..request()
            };
            let dir = host.dir(&request.VMID);
            let progress = Progress::default();
            let booting = host.boot(&dir, &request, &progress);
            let booted = tokio::time::timeout(bound, booting).await;
            assert!(booted.is_err(), "{bound:?}");
            dir.undo();
            nothing_left(&request.VMID);
        }
    }
}
