//! VMs whose VMM is in a jail, made by the control API, beside VMs without one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use fc_proto::control::{
    CreateVMRequest, CreateVMResponse, DriveExposePolicy, FirecrackerBalloonDevice,
    FirecrackerDriveMount, GetBalloonConfigRequest, GetVMInfoRequest, JailerConfig, PauseVMRequest,
    ResumeVMRequest, UpdateBalloonRequest,
};
use fc_proto::protobuf::MessageField;
use fc_proto::ttrpc;

use crate::OnSetup;
use crate::drives_vm::{Controlled, context, vm};
use crate::fixture::{Flavor, Setup, finish};

/// Each has a daemon of its own.
pub const OWN: &[(&str, OnSetup)] = &[
    ("jail::beside_a_vm_without_one", beside),
    ("jail::five_at_once", five),
    ("jail::whoever_is_killed_nothing_stays", killed),
    ("jail::refused_by_name", refused),
];

/// User and group of the first jailed VMM; each has its own.
const UID: u32 = 71_000;
/// Bound on the end of a VM whose VMM or shim was killed.
const BOUND: Duration = Duration::from_secs(30);

/// A daemon whose VMs can have a jail, with the template that is shipped.
fn daemon(setup: &Setup, flavor: &Flavor) -> Controlled {
    let template =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/firecracker-runc-config.json");
    let vmm = vmm(setup);
    Controlled::with_config(setup, flavor, |config| {
        config.insert(
            "firecracker_binary_path".to_owned(),
            vmm.display().to_string().into(),
        );
        let jailer =
            serde_json::json!({ "runc_binary_path": "runc", "runc_config_path": template });
        config.insert("jailer".to_owned(), jailer);
    })
}

/// The VMM with what it needs in a jail beside it. Firecracker itself needs nothing.
fn vmm(setup: &Setup) -> PathBuf {
    let configured = std::env::var_os("FIRECRACKER_BIN").map(PathBuf::from);
    let installed = configured.unwrap_or_else(|| setup.bin_dir().join("firecracker-tcg"));
    let vmm = setup
        .fresh_dir()
        .join(installed.file_name().expect("a program"));
    if fs::hard_link(&installed, &vmm).is_err() {
        fs::copy(&installed, &vmm).expect("a copy");
    }
    let needs = Command::new(&vmm)
        .arg("--print-jail-paths")
        .output()
        .expect("runs");
    if needs.status.success() {
        let mut list = vmm.clone().into_os_string();
        list.push(".jail.json");
        fs::write(list, needs.stdout).expect("the list");
    }
    vmm
}

fn jailed(id: &str, number: u32, policy: DriveExposePolicy) -> CreateVMRequest {
    CreateVMRequest {
        JailerConfig: MessageField::some(JailerConfig {
            UID: UID + number,
            GID: UID + number,
            CPUs: "0".to_owned(),
            Mems: "0".to_owned(),
            DriveExposePolicy: policy.into(),
            ..JailerConfig::default()
        }),
        TimeoutSeconds: 120,
        ..vm(id, Vec::new())
    }
}

fn create(on: &Controlled, request: &CreateVMRequest) -> ttrpc::Result<CreateVMResponse> {
    on.call(async |client| client.create_vm(context(), request).await)
}

/// The image of a drive mount, which only root may use.
fn image(dir: &Path, name: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let content = dir.join(format!("{name}.d"));
    fs::create_dir(&content).expect("a directory");
    fs::write(content.join("hello"), name).expect("a file");
    let image = dir.join(name);
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-d"]).arg(&content).arg(&image).arg("16M");
    finish(mkfs).expect(0);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).expect("a mode");
    image
}

fn drive(image: &Path) -> FirecrackerDriveMount {
    FirecrackerDriveMount {
        HostPath: image.display().to_string(),
        VMPath: "/vmv/data".to_owned(),
        FilesystemType: "ext4".to_owned(),
        IsWritable: true,
        ..FirecrackerDriveMount::default()
    }
}

/// Runs a container that reads and writes its VM's drive mount.
fn container(on: &Controlled, vm: &str) -> String {
    let annotation = format!("aws.firecracker.vm.id={vm}");
    let mount = "type=bind,src=/vmv/data,dst=/data,options=rbind:rw";
    let options = ["--annotation", &annotation, "--mount", mount];
    let script = "cat /data/hello && echo written > /data/new && sync && echo '' && echo done";
    let id = format!("in-{vm}");
    on.on
        .run(&options, &id, &["/bin/sh", "-c", script])
        .expect(0)
        .text()
}

/// The file `/new` in an image, as `container` writes it.
fn written(image: &Path) -> String {
    let mut debugfs = Command::new("debugfs");
    debugfs.args(["-R", "cat /new"]).arg(image);
    finish(debugfs).expect(0).text()
}

/// Directories of the VM's cgroup, in every hierarchy.
fn cgroups(path: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten();
    let below = hierarchies.map(|hierarchy| hierarchy.path());
    let all = below.chain([PathBuf::from("/sys/fs/cgroup")]);
    all.map(|hierarchy| hierarchy.join(path.trim_start_matches('/')))
        .filter(|group| group.is_dir())
        .collect()
}

/// Processes in the VM's cgroup.
fn processes(cgroup: &str) -> Vec<u32> {
    let groups = cgroups(cgroup);
    let group = groups.first().expect("a cgroup");
    let text = fs::read_to_string(group.join("cgroup.procs")).expect("its processes");
    text.lines()
        .map(|line| line.parse().expect("a number"))
        .collect()
}

fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.expect("the field").trim().to_owned()
}

fn assert_gone(on: &Controlled, cgroup: &str) {
    assert_eq!(cgroups(cgroup), Vec::<PathBuf>::new(), "cgroups stay");
    assert_eq!(on.on.vm_dirs(), Vec::<PathBuf>::new(), "directories stay");
    let left = on.on.scope().leftovers(&[]);
    let mounts: Vec<_> = left
        .iter()
        .filter(|line| line.starts_with("mount"))
        .collect();
    assert!(mounts.is_empty(), "{mounts:?}");
}

/// The same things in both: containers, a drive mount, the balloon, a pause.
fn beside(setup: &Setup, flavor: &Flavor) {
    let on = daemon(setup, flavor);
    let dir = setup.fresh_dir();
    let (bind, copy, free) = (
        image(&dir, "bind"),
        image(&dir, "copy"),
        image(&dir, "free"),
    );
    let requests = [
        CreateVMRequest {
            DriveMounts: vec![drive(&bind)],
            BalloonDevice: MessageField::some(FirecrackerBalloonDevice {
                AmountMib: 4,
                DeflateOnOom: true,
                ..FirecrackerBalloonDevice::default()
            }),
            ..jailed("bind", 0, DriveExposePolicy::BIND)
        },
        CreateVMRequest {
            DriveMounts: vec![drive(&copy)],
            ..jailed("copy", 1, DriveExposePolicy::COPY)
        },
        vm("free", vec![drive(&free)]),
    ];
    let created = requests.each_ref().map(|request| {
        let begin = Instant::now();
        let created = create(&on, request).expect("CreateVM");
        println!("CreateVM of {}: {:?}", request.VMID, begin.elapsed());
        created
    });
    assert_eq!(created[0].CgroupPath, "/firecracker-containerd/bind");
    assert_eq!(created[2].CgroupPath, "");
    for (vm, user) in [(&created[0], UID), (&created[1], UID + 1)] {
        let pids = processes(&vm.CgroupPath);
        assert!(!pids.is_empty());
        for pid in pids {
            assert_eq!(status(pid, "Uid:"), vec![user.to_string(); 4].join("\t"));
            assert_eq!(status(pid, "Cpus_allowed_list:"), "0");
            assert_eq!(status(pid, "Mems_allowed_list:"), "0");
            assert_eq!(status(pid, "NoNewPrivs:"), "1");
        }
        let mut request = GetVMInfoRequest::new();
        request.VMID.clone_from(&vm.VMID);
        let info = on.call(async |client| client.get_vm_info(context(), &request).await);
        assert_eq!(info.expect("GetVMInfo").CgroupPath, vm.CgroupPath);
    }
    for name in ["bind", "copy", "free"] {
        assert_eq!(container(&on, name), format!("{name}\ndone\n"));
    }
    balloon_and_pause(&on, "bind");
    assert_eq!(container(&on, "bind"), "bind\ndone\n");
    for name in ["bind", "copy", "free"] {
        on.stop(name);
    }
    assert_gone(&on, "/firecracker-containerd/bind");
    assert_gone(&on, "/firecracker-containerd/copy");
    assert_eq!(written(&bind), "written\n");
    assert_eq!(written(&copy), "", "a copy goes with its VM");
    assert_eq!(written(&free), "written\n");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(bind.metadata().expect("the image").uid(), 0);
}

fn balloon_and_pause(on: &Controlled, id: &str) {
    on.call(async |client| {
        let mut update = UpdateBalloonRequest::new();
        update.VMID = id.to_owned();
        update.AmountMib = 8;
        client
            .update_balloon(context(), &update)
            .await
            .expect("UpdateBalloon");
        let mut get = GetBalloonConfigRequest::new();
        get.VMID = id.to_owned();
        let config = client
            .get_balloon_config(context(), &get)
            .await
            .expect("GetBalloonConfig");
        assert_eq!(config.BalloonConfig.AmountMib, 8);
        let mut pause = PauseVMRequest::new();
        pause.VMID = id.to_owned();
        client.pause_vm(context(), &pause).await.expect("PauseVM");
        let mut resume = ResumeVMRequest::new();
        resume.VMID = id.to_owned();
        client
            .resume_vm(context(), &resume)
            .await
            .expect("ResumeVM");
    });
}

fn five(setup: &Setup, flavor: &Flavor) {
    let on = daemon(setup, flavor);
    std::thread::scope(|scope| {
        for number in 0..5 {
            let on = &on;
            scope.spawn(move || {
                let id = format!("five-{number}");
                let created = create(on, &jailed(&id, number, DriveExposePolicy::BIND));
                let cgroup = created.expect("CreateVM").CgroupPath;
                let user = (UID + number).to_string();
                assert!(status(processes(&cgroup)[0], "Uid:").starts_with(&user));
                let annotation = format!("aws.firecracker.vm.id={id}");
                let done = on
                    .on
                    .run(&["--annotation", &annotation], &id, &["/bin/echo", "hi"]);
                assert_eq!(done.expect(0).text(), "hi\n");
                on.stop(&id);
                assert!(cgroups(&cgroup).is_empty());
            });
        }
    });
    assert_gone(&on, "/firecracker-containerd/five-0");
}

/// The VMM; the shim.
fn killed(setup: &Setup, flavor: &Flavor) {
    let on = daemon(setup, flavor);
    for victim in ["the VMM", "the shim"] {
        let created = create(&on, &jailed("killed", 0, DriveExposePolicy::BIND)).expect("CreateVM");
        let vmm = processes(&created.CgroupPath)[0];
        let parent = status(vmm, "PPid:").parse().expect("the shim adopted it");
        let pid = if victim == "the VMM" { vmm } else { parent };
        let mut kill = Command::new("kill");
        kill.args(["-9", &pid.to_string()]);
        finish(kill).expect(0);
        let begin = Instant::now();
        while !on.on.vm_dirs().is_empty() {
            assert!(
                begin.elapsed() < BOUND,
                "{victim} was killed, {:?} stay",
                on.on.vm_dirs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        println!(
            "{victim} was killed: cleaned up after {:?}",
            begin.elapsed()
        );
        assert_gone(&on, &created.CgroupPath);
    }
}

fn refused(setup: &Setup, flavor: &Flavor) {
    let on = daemon(setup, flavor);
    let with = |change: &dyn Fn(&mut JailerConfig)| {
        let mut request = jailed("refused", 0, DriveExposePolicy::BIND);
        change(request.JailerConfig.as_mut().expect("it has one"));
        let error = create(&on, &request).expect_err("CreateVM fails");
        assert_gone(&on, "/firecracker-containerd/refused");
        error.to_string()
    };
    let root = with(&|jail| jail.UID = 0);
    assert!(
        root.contains("0 cannot be used for the UID or GID"),
        "{root}"
    );
    let netns = with(&|jail| jail.NetNS = "/nonexistent/netns".to_owned());
    assert!(netns.contains("/nonexistent/netns"), "{netns}");
    let cgroup = with(&|jail| jail.CgroupPath = "/../..".to_owned());
    assert!(cgroup.contains("CgroupPath"), "{cgroup}");
}
