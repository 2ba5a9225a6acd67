//! VMs whose VMM is in a jail, beside VMs without one.
//!
//! Where `FIRECRACKER_BIN` names a real Firecracker, its VMs are jailed in the same way.

mod networks;
mod side_by_side;
mod teardown;
mod traces;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fc_proto::control::{
    CreateVMRequest, CreateVMResponse, DriveExposePolicy, FirecrackerDriveMount, JailerConfig,
};
use fc_proto::protobuf::MessageField;
use fc_proto::ttrpc;
use serde_json::{Map, Value, json};

use crate::OnSetup;
use crate::daemon::{create, ctx};
use crate::drives_vm::Controlled;
use crate::fixture::{Flavor, Setup, finish};

/// Each has an instance of its own.
pub const OWN: &[(&str, OnSetup)] = &[
    ("jail::five_side_by_side", side_by_side::five),
    ("jail::networks_of_twins", networks::twins),
    ("jail::nothing_stays_with_bind", teardown::bind),
    ("jail::nothing_stays_with_copy", teardown::copy),
    ("jail::refused_by_name", refused),
];

/// The namespace that `ctr` uses where nothing else is said.
const NAMESPACE: &str = "default";

/// The template that is shipped.
fn template() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/firecracker-runc-config.json")
}

/// Makes VMs with a jail possible.
fn configure(config: &mut Map<String, Value>, setup: &Setup, runc: &Path, template: &Path) {
    config.insert("firecracker_binary_path".to_owned(), json!(vmm(setup)));
    let jailer = json!({ "runc_binary_path": runc, "runc_config_path": template });
    config.insert("jailer".to_owned(), jailer);
}

/// A daemon whose VMs can have a jail.
fn daemon(setup: &Setup, flavor: &Flavor, template: &Path) -> Controlled {
    Controlled::with_config(setup, flavor, |config| {
        configure(config, setup, Path::new("runc"), template);
    })
}

/// The VMM with the list of what it needs in a jail beside it: `firecracker-tcg` tells, a Firecracker that is not
/// linked statically has the list already.
fn vmm(setup: &Setup) -> PathBuf {
    let installed = setup.vmm();
    let vmm = setup
        .fresh_dir()
        .join(installed.file_name().expect("a program"));
    // By a process of its own: what this one had open for writing a program that another test is just starting could
    // still have, and then nobody can execute it.
    let mut copy = Command::new("cp");
    copy.arg(installed).arg(&vmm);
    finish(copy).expect(0);
    let list = |program: &Path| {
        let mut name = program.as_os_str().to_owned();
        name.push(".jail.json");
        PathBuf::from(name)
    };
    let told = Command::new(&vmm).arg("--print-jail-paths").output();
    let told = told.expect("the VMM runs");
    if told.status.success() {
        fs::write(list(&vmm), told.stdout).expect("the list");
    } else if list(installed).exists() {
        fs::copy(list(installed), list(&vmm)).expect("the list");
    }
    vmm
}

/// User and group of a VMM. Every VM of these tests has a number of its own below 16, as tests run at the same time;
/// other test runs on this host have other users.
fn user(number: u32) -> u32 {
    1_000_000 + std::process::id() % 1_000_000 * 16 + number
}

/// A VM's id that other test runs on this host do not have: cgroups are named after it.
fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

fn jailed(id: &str, number: u32, policy: DriveExposePolicy) -> CreateVMRequest {
    CreateVMRequest {
        JailerConfig: MessageField::some(JailerConfig {
            UID: user(number),
            GID: user(number),
            DriveExposePolicy: policy.into(),
            ..JailerConfig::default()
        }),
        ..create(id)
    }
}

fn created(
    on: &Controlled,
    namespace: &str,
    request: &CreateVMRequest,
) -> ttrpc::Result<CreateVMResponse> {
    on.call(async |client| client.create_vm(ctx(namespace), request).await)
}

/// An ext4 image with `/hello` in it, which only root may use.
fn image(dir: &Path, name: &str) -> PathBuf {
    let content = dir.join(format!("{name}.d"));
    fs::create_dir(&content).expect("a directory");
    fs::write(content.join("hello"), format!("{name}\n")).expect("a file");
    let image = dir.join(name);
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-d"]).arg(&content).arg(&image).arg("8M");
    finish(mkfs).expect(0);
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).expect("a mode");
    image
}

fn drive(image: &Path, guest: &str, writable: bool) -> FirecrackerDriveMount {
    FirecrackerDriveMount {
        HostPath: image.display().to_string(),
        VMPath: guest.to_owned(),
        FilesystemType: "ext4".to_owned(),
        IsWritable: writable,
        ..FirecrackerDriveMount::default()
    }
}

/// What cannot be is refused, and leaves nothing.
fn refused(setup: &Setup, flavor: &Flavor) {
    let on = daemon(setup, flavor, &template());
    let id = unique("refused");
    let with = |change: &dyn Fn(&mut JailerConfig)| {
        let mut request = jailed(&id, 9, DriveExposePolicy::BIND);
        change(request.JailerConfig.as_mut().expect("it has one"));
        let error = created(&on, NAMESPACE, &request).expect_err("CreateVM fails");
        traces::assert_gone(&on.on, &format!("/firecracker-containerd/{id}"), user(9));
        error.to_string()
    };
    let root = with(&|jail| jail.UID = 0);
    assert!(
        root.contains("0 cannot be used for the UID or GID"),
        "{root}"
    );
    let netns = with(&|jail| jail.NetNS = "/nonexistent/netns".to_owned());
    assert!(netns.contains("/nonexistent/netns"), "{netns}");
    let nobody_s = image(&setup.fresh_dir(), "nobody-s");
    fs::set_permissions(&nobody_s, fs::Permissions::from_mode(0o000)).expect("a mode");
    let mounted = CreateVMRequest {
        DriveMounts: vec![drive(&nobody_s, "/vmv/data", true)],
        ..jailed(&id, 9, DriveExposePolicy::BIND)
    };
    let mounted = created(&on, NAMESPACE, &mounted).expect_err("CreateVM fails");
    let mounted = mounted.to_string();
    assert!(
        mounted.contains("INVALID_ARGUMENT")
            && mounted.contains("DriveMounts[0]")
            && mounted.contains("0000"),
        "{mounted}"
    );
    traces::assert_gone(&on.on, &format!("/firecracker-containerd/{id}"), user(9));
    let cgroup = with(&|jail| jail.CgroupPath = "/../..".to_owned());
    assert!(cgroup.contains("CgroupPath"), "{cgroup}");
    let code = |error: &str| error.contains("INVALID_ARGUMENT");
    let cpus = with(&|jail| jail.CPUs = "0,first".to_owned());
    assert!(code(&cpus) && cpus.contains("JailerConfig.CPUs"), "{cpus}");
    let mems = with(&|jail| jail.Mems = "1-0".to_owned());
    assert!(code(&mems) && mems.contains("JailerConfig.Mems"), "{mems}");
    // A list, of what no host has: the kernel refuses it.
    let mems = with(&|jail| jail.Mems = "0-1023".to_owned());
    assert!(code(&mems) && mems.contains("JailerConfig.Mems"), "{mems}");
}
