//! Every way a VM can fail to start ends soon, names its cause and leaves nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::OnSetup;
use crate::fixture::{Finished, Flavor, Instance, Setup, eventually, finish};

/// Each starts an instance of its own, with what is wrong in its configuration.
pub const TESTS: &[(&str, OnSetup)] = &[
    ("errors::kernel", kernel),
    ("errors::root_image", root_image),
    ("errors::kernel_panic", kernel_panic),
    ("errors::agent_missing", agent_missing),
    ("errors::agent_crashes", agent_crashes),
    ("errors::agent_protocol", agent_protocol),
    ("errors::vmm", vmm),
    ("errors::kvm_not_usable", kvm_not_usable),
    ("errors::memory", memory),
    ("errors::configuration", configuration),
];

/// Far above what a failure takes, far below any of the product's own time limits (60 s).
const SOON: Duration = Duration::from_secs(50);

/// Runs a container that must fail, and returns what `ctr` printed.
#[track_caller]
fn failing(on: &Instance, options: &[&str]) -> Finished {
    let done = on.run(options, "fails", &["/bin/true"]);
    assert_ne!(done.code, 0);
    assert!(done.took < SOON, "took {:?}: {}", done.took, done.stderr);
    // containerd waits 5 s at most for the end of a VM that failed.
    assert!(eventually(|| on.vm_dirs().is_empty()), "{}", done.stderr);
    // The id is free: nothing of the failed container stayed in containerd.
    let tasks = on.ctr(&["task", "ls", "-q"]).expect(0).text();
    assert_eq!(tasks, "");
    done
}

#[track_caller]
fn expect_words(done: &Finished, words: &[&str]) {
    for word in words {
        assert!(
            done.stderr.contains(word),
            "{word:?} is not in the message: {}",
            done.stderr
        );
    }
}

/// Fails with `key` set to `value`; the message must contain all of `words`.
#[track_caller]
fn fails_with(setup: &Setup, flavor: &Flavor, key: &str, value: Value, words: &[&str]) {
    let on = Instance::with_config(setup, flavor, |config: &mut Map<String, Value>| {
        config.insert(key.to_owned(), value);
    });
    expect_words(&failing(&on, &[]), words);
}

fn kernel(setup: &Setup, flavor: &Flavor) {
    let missing = "/no/such/vmlinux";
    fails_with(
        setup,
        flavor,
        "kernel_image_path",
        json!(missing),
        &[missing, "kernel"],
    );
    let text = setup.fresh_dir().join("not-a-kernel");
    std::fs::write(&text, "this is not a kernel\n").expect("write");
    let name = text.to_string_lossy();
    fails_with(
        setup,
        flavor,
        "kernel_image_path",
        json!(text),
        &[&name, "kernel"],
    );
}

fn root_image(setup: &Setup, flavor: &Flavor) {
    let missing = "/no/such/rootfs";
    fails_with(setup, flavor, "root_drive", json!(missing), &[missing]);
    let corrupt = setup.fresh_dir().join("corrupt");
    std::fs::write(&corrupt, vec![0x5a; 1 << 20]).expect("write");
    fails_with(setup, flavor, "root_drive", json!(corrupt), &["root"]);
}

fn kernel_panic(setup: &Setup, flavor: &Flavor) {
    let args = "console=ttyS0 quiet reboot=k panic=1 pci=off rdinit=/no/such/init";
    fails_with(
        setup,
        flavor,
        "kernel_args",
        json!(args),
        &["panic", "Unable to mount root fs"],
    );
}

/// An erofs image with only the given init program in it (none: an empty `/sbin`).
fn root_with_init(setup: &Setup, init: Option<&Path>) -> PathBuf {
    let dir = setup.fresh_dir();
    let tree = dir.join("tree");
    for name in ["sbin", "proc", "sys", "dev", "run", "tmp", "container"] {
        std::fs::create_dir_all(tree.join(name)).expect("mkdir");
    }
    if let Some(init) = init {
        std::fs::copy(init, tree.join("sbin/init")).expect("copy init");
    }
    let image = dir.join("rootfs.img");
    let mut mkfs = Command::new("mkfs.erofs");
    mkfs.arg(&image).arg(&tree);
    finish(mkfs).expect(0);
    image
}

/// Fails with a root image whose `/sbin/init` is `agent`, or that has none.
#[track_caller]
fn fails_with_agent(setup: &Setup, flavor: &Flavor, agent: Option<&str>, words: &[&str]) {
    let image = root_with_init(setup, agent.map(Path::new));
    fails_with(setup, flavor, "root_drive", json!(image), words);
}

fn agent_missing(setup: &Setup, flavor: &Flavor) {
    fails_with_agent(setup, flavor, None, &["/sbin/init"]);
}

fn agent_crashes(setup: &Setup, flavor: &Flavor) {
    // Cargo builds these beside the test; they are linked statically as everything here.
    let agent = env!("CARGO_BIN_EXE_crashing-agent");
    fails_with_agent(setup, flavor, Some(agent), &["panic", "giving up"]);
}

fn agent_protocol(setup: &Setup, flavor: &Flavor) {
    let agent = env!("CARGO_BIN_EXE_wrong-protocol-agent");
    fails_with_agent(setup, flavor, Some(agent), &["protocol", "9.9.9"]);
}

fn script(setup: &Setup, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = setup.fresh_dir().join(name);
    std::fs::write(&path, text).expect("write");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    path
}

fn vmm(setup: &Setup, flavor: &Flavor) {
    let key = "firecracker_binary_path";
    let missing = "/no/such/firecracker";
    fails_with(setup, flavor, key, json!(missing), &[missing]);
    let plain = script(setup, "firecracker-tcg", "#!/bin/sh\n", 0o644);
    let name = plain.to_string_lossy();
    fails_with(setup, flavor, key, json!(plain), &[&name, "execut"]);
    // Its name says that it needs no KVM, so that its version is what is looked at.
    let old = setup.fresh_dir().join("firecracker-tcg");
    std::fs::copy(env!("CARGO_BIN_EXE_old-vmm"), &old).expect("copy");
    fails_with(setup, flavor, key, json!(old), &["0.20.0", "old"]);
}

/// A program that is not `firecracker-tcg` needs KVM; this kind of machine may lack a usable one.
fn kvm_not_usable(setup: &Setup, flavor: &Flavor) {
    use fc_testbed::hardware_kvm;
    if hardware_kvm() {
        println!("SKIPPED: KVM runs ordinary guests here");
        return;
    }
    let version = "#!/bin/sh\necho 'Firecracker v1.12.0'\n";
    let real = script(setup, "firecracker", version, 0o755);
    let key = "firecracker_binary_path";
    fails_with(setup, flavor, key, json!(real), &["KVM", "firecracker-tcg"]);
}

fn memory(setup: &Setup, flavor: &Flavor) {
    let on = Instance::start(setup, flavor);
    let huge = ["--annotation", "aws.firecracker.vm.memory_mib=9000000"];
    expect_words(&failing(&on, &huge), &["9000000", "MiB"]);
    fails_with(
        setup,
        flavor,
        "mem_size_mib",
        json!(32),
        &["mem_size_mib", "32"],
    );
}

fn configuration(setup: &Setup, flavor: &Flavor) {
    let on = Instance::with_raw_config(setup, flavor, "{\n  \"root_drive\": \"/x\",\n  oops\n}\n");
    expect_words(&failing(&on, &[]), &["firecracker-runtime.json:3:"]);
    fails_with(
        setup,
        flavor,
        "default_container_count",
        json!("many"),
        &["firecracker-runtime.json", "default_container_count"],
    );
    let on = Instance::start(setup, flavor);
    std::fs::remove_file(on.layout.dir.join("firecracker-runtime.json")).expect("remove");
    expect_words(&failing(&on, &[]), &["firecracker-runtime.json"]);
}
