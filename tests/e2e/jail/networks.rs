//! Two jailed VMs of the same id, in two namespaces of containerd and two networks: one from the request, one from
//! the template.

use std::fs;
use std::path::{Path, PathBuf};

use fc_proto::control::{
    CreateVMRequest, DriveExposePolicy, FirecrackerNetworkInterface, PauseVMRequest,
    ResumeVMRequest, SetVMMetadataRequest, StaticNetworkConfiguration,
};
use fc_proto::protobuf::MessageField;
use serde_json::{Value, json};

use super::traces::{assert_gone, cgroups, network};
use super::{NAMESPACE, created, daemon, jailed, template, unique, user};
use crate::daemon::{ctx, info, of, stop};
use crate::drives_vm::Controlled;
use crate::fixture::{Flavor, Setup, finish};
use crate::tap::Network;

/// The other namespace of containerd.
const OTHER: &str = "other";
/// The VMs' users.
const FIRST: u32 = 5;
const SECOND: u32 = 6;
/// The same in both networks, where no other VM can have it.
const TAP: &str = "tap0";

pub fn twins(setup: &Setup, flavor: &Flavor) {
    let (requested, templated) = (Network::new(), Network::new());
    requested.add_tap(TAP, user(FIRST));
    templated.add_tap(TAP, user(SECOND));
    let template = template_in(&setup.fresh_dir(), &templated.path());
    let on = daemon(setup, flavor, &template);
    let tar = on.on.layout.dir.join("image.tar");
    let mut import = on.on.containerd.ctr();
    import.args(["-n", OTHER, "images", "import"]).arg(tar);
    finish(import).expect(0);

    let id = unique("twin");
    let mut first = request(&id, FIRST);
    let jail = first.JailerConfig.as_mut().expect("a jail");
    jail.NetNS = requested.path().display().to_string();
    let first = created(&on, NAMESPACE, &first).expect("CreateVM");
    let second = created(&on, OTHER, &request(&id, SECOND)).expect("CreateVM of the other one");
    assert_eq!(first.CgroupPath, format!("/firecracker-containerd/{id}"));
    assert_eq!(
        second.CgroupPath,
        format!("/firecracker-containerd/{id}@{OTHER}")
    );
    for (namespace, vm, network_there) in [
        (NAMESPACE, &first, &requested),
        (OTHER, &second, &templated),
    ] {
        assert!(!cgroups(&vm.CgroupPath).is_empty());
        let shown = on.call(async |client| client.get_vm_info(ctx(namespace), &info(&id)).await);
        assert_eq!(shown.expect("GetVMInfo").CgroupPath, vm.CgroupPath);
        assert_eq!(network(&vm.CgroupPath), network_there.identity());
        set_metadata(&on, namespace, &id);
    }
    for namespace in [NAMESPACE, OTHER] {
        assert_eq!(metadata_in_guest(&on, namespace, &id), namespace);
    }
    pause_and_resume(&on, NAMESPACE, &id);
    assert_eq!(metadata_in_guest(&on, NAMESPACE, &id), NAMESPACE);

    stop_in(&on, NAMESPACE, &id);
    assert!(cgroups(&first.CgroupPath).is_empty());
    assert!(!cgroups(&second.CgroupPath).is_empty(), "it lives");
    stop_in(&on, OTHER, &id);
    for (vm, user) in [(&first, user(FIRST)), (&second, user(SECOND))] {
        assert_gone(&on.on, &vm.CgroupPath, user);
    }
    for network in [requested, templated] {
        assert!(network.path().exists(), "what the user made stays");
    }
}

fn request(id: &str, number: u32) -> CreateVMRequest {
    CreateVMRequest {
        NetworkInterfaces: vec![FirecrackerNetworkInterface {
            AllowMMDS: true,
            StaticConfig: MessageField::some(StaticNetworkConfiguration {
                MacAddress: "06:00:c0:00:02:01".to_owned(),
                HostDevName: TAP.to_owned(),
                ..StaticNetworkConfiguration::default()
            }),
            ..FirecrackerNetworkInterface::default()
        }],
        ..jailed(id, number, DriveExposePolicy::BIND)
    }
}

/// The template that is shipped, with a network.
fn template_in(dir: &Path, network: &Path) -> PathBuf {
    let text = fs::read_to_string(template()).expect("the template");
    let mut document: Value = serde_json::from_str(&text).expect("JSON");
    let namespaces = document["linux"]["namespaces"].as_array_mut();
    let mut namespaces = namespaces.expect("namespaces").iter_mut();
    let entry = namespaces.find(|entry| entry["type"] == "network");
    entry.expect("a network")["path"] = json!(network);
    let path = dir.join("template.json");
    fs::write(&path, document.to_string()).expect("a file");
    path
}

/// The VM is to tell its guest in which namespace it is.
fn set_metadata(on: &Controlled, namespace: &str, id: &str) {
    let mut request = of::<SetVMMetadataRequest>(id);
    request.Metadata = json!({ "namespace": namespace }).to_string();
    let set = on.call(async |client| client.set_vm_metadata(ctx(namespace), &request).await);
    set.expect("SetVMMetadata");
}

/// What the guest reads, through a container that shares the guest's network.
fn metadata_in_guest(on: &Controlled, namespace: &str, id: &str) -> String {
    let annotation = format!("aws.firecracker.vm.id={id}");
    let options = [
        "--rm",
        "--net-host",
        "--cap-add",
        "CAP_NET_ADMIN",
        "--annotation",
        &annotation,
    ];
    // The second time the interface has its address.
    let script = "ip link show eth0 | grep -q UP || { ip addr add 172.16.0.2/30 dev eth0 && ip link set eth0 up && \
         ip route add 169.254.169.254 dev eth0; } && wget -q -O - http://169.254.169.254/namespace";
    let mut run = on
        .on
        .run_command(&options, "reader", &["/bin/sh", "-c", script]);
    run.env("CONTAINERD_NAMESPACE", namespace);
    finish(run).expect(0).text()
}

fn pause_and_resume(on: &Controlled, namespace: &str, id: &str) {
    let (pause, resume) = (of::<PauseVMRequest>(id), of::<ResumeVMRequest>(id));
    on.call(async |client| {
        let paused = client.pause_vm(ctx(namespace), &pause).await;
        paused.expect("PauseVM");
        let resumed = client.resume_vm(ctx(namespace), &resume).await;
        resumed.expect("ResumeVM");
    });
}

fn stop_in(on: &Controlled, namespace: &str, id: &str) {
    let stopped = on.call(async |client| client.stop_vm(ctx(namespace), &stop(id)).await);
    stopped.expect("StopVM");
}
