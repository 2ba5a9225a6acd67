//! What a request asks of a jail, besides its files: names, processors, networks; and what is refused of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use fc_jailer::{JailError, JailRequest, Jailer, Runc, Setup, Start, StartError};
use fc_test_host::write_program;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::Test;
use crate::host::{Host, Runtime, block_on};
use crate::security::end;

pub const TESTS: &[(&str, Test)] = &[
    ("request::refused", refused),
    (
        "request::a_vmm_that_cannot_be_executed",
        a_vmm_that_cannot_be_executed,
    ),
    (
        "request::a_node_that_is_not_there",
        a_node_that_is_not_there,
    ),
    ("request::two_namespaces_one_id", two_namespaces_one_id),
    ("request::a_group_at_the_top", a_group_at_the_top),
    (
        "request::pinned_and_in_its_network",
        pinned_and_in_its_network,
    ),
];

/// What looks like a program that is linked dynamically (elf(5)): the header, whose 64 bytes one program header of 56
/// follows, and the name of the interpreter, which is what that header is of.
const DYNAMIC: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    \x40\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x38\0\x01\0\0\0\0\0\0\0\
    \x03\0\0\0\0\0\0\0\x78\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
    \x0d\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0/lib64/ld.so\0";

/// What cannot be is said at once, and nothing of it stays.
fn refused(runtime: &Runtime) {
    block_on(async {
        let host = Host::new(runtime);
        let refused = async |change: &dyn Fn(&mut Setup<'_>)| {
            let mut setup = host.setup();
            change(&mut setup);
            let error = Runc::prepare(setup).await.err().expect("an error");
            host.assert_clean();
            error
        };
        let error = refused(&|setup| setup.template = Path::new("/nonexistent")).await;
        assert!(matches!(error, JailError::Template(_)));
        let error = refused(&|setup| setup.request.net_ns = Some("/etc/passwd".into())).await;
        assert!(error.is_invalid_request(), "{error}");
        let error = refused(&|setup| setup.request.cgroup_path = "/a/../../b".into()).await;
        assert!(error.is_invalid_request(), "{error}");
        let error = refused(&|setup| setup.vmm = Path::new("/nonexistent")).await;
        assert!(error.to_string().contains("/nonexistent"), "{error}");

        let mut host = Host::new(runtime);
        host.vmm = host.base.path().join("dynamic");
        fs::write(&host.vmm, DYNAMIC).unwrap();
        let error = Runc::prepare(host.setup()).await.err().expect("an error");
        let text = error.to_string();
        assert!(
            text.contains("dynamic.jail.json") && text.contains("/lib64/ld.so"),
            "{text}"
        );
        host.assert_clean();
    });
}

/// Where the host executes nothing, the jail does not either.
fn a_vmm_that_cannot_be_executed(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        let place = host.base.path().join("noexec");
        fs::create_dir(&place).unwrap();
        mount("none", &place, "tmpfs", MountFlags::NOEXEC, None).unwrap();
        let vmm = place.join("vmm");
        write_program(&vmm, "");
        host.vmm = vmm;
        let error = Runc::prepare(host.setup()).await.err().expect("an error");
        let text = error.to_string();
        assert!(
            text.contains("noexec/vmm is on a file system that is mounted noexec"),
            "{text}"
        );
        // A process that another test is just starting may have a file of it open.
        unmount(&place, UnmountFlags::DETACH).unwrap();
        host.assert_clean();
    });
}

/// A list is right, and the kernel refuses what it names: the request is at fault, and the field is said.
fn a_node_that_is_not_there(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        host.request.mems = "0-1023".parse().unwrap();
        let jail = host.prepare().await;
        let error = jail.start(Start::default()).await.expect_err("an error");
        let text = error.to_string();
        assert!(
            text.contains("JailerConfig.Mems") && text.contains("0-1023"),
            "{error:?}"
        );
        let StartError::Jail(error) = error else {
            panic!("{error:?}");
        };
        assert!(error.is_invalid_request(), "{error:?}");
        assert!(jail.close().await.is_empty());
        host.assert_clean();
    });
}

fn two_namespaces_one_id(runtime: &Runtime) {
    block_on(async {
        let (one, mut other) = (Host::new(runtime), Host::new(runtime));
        other.vm_id.clone_from(&one.vm_id);
        let (jail, vmm, _) = one.start().await;
        let setup = Setup {
            namespace: "other",
            ..other.setup()
        };
        let other_jail = Runc::prepare(setup.clone()).await.unwrap();
        let other_vmm = other_jail.start(Start::default()).await.unwrap();
        let path = format!("/firecracker-containerd/{}", one.vm_id);
        assert_eq!(jail.cgroup_path(), Some(&*path));
        assert_eq!(other_jail.cgroup_path(), Some(&*format!("{path}@other")));
        let third = tempfile::tempdir().unwrap();
        let error = Runc::prepare(Setup {
            dir: third.path(),
            ..setup
        });
        let error = error.await.err().expect("an error").to_string();
        assert!(error.contains(&path), "{error}");
        // The end of one is not the end of the other.
        vmm.kill();
        vmm.exited().await;
        assert!(jail.close().await.is_empty());
        assert!(other_vmm.end().is_none());
        end(other_jail, other_vmm, &other).await;
        one.assert_clean();
    });
}

/// Beside the default parent, and not below: a share of the processors that is the VM's own.
fn a_group_at_the_top(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        host.request.cgroup_path = "/".to_owned();
        let (jail, vmm, _) = host.start().await;
        let cgroup = format!("/{}", host.vm_id);
        assert_eq!(jail.cgroup_path(), Some(&*cgroup));
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", vmm.pid())).unwrap();
        let of = |controller: &str| {
            let mut lines = groups.lines().map(|line| line.splitn(3, ':'));
            lines.find_map(|mut line| {
                let controllers = line.nth(1)?;
                let found = controllers.split(',').any(|it| it == controller);
                found.then(|| line.next().unwrap_or_default().to_owned())
            })
        };
        // cgroup v1's hierarchy for it, or v2's, which names no controllers.
        assert_eq!(of("cpu").or_else(|| of("")), Some(cgroup), "{groups}");
        end(jail, vmm, &host).await;
    });
}

/// A file of the cgroup, in cgroup v1's hierarchy for it or in v2's.
fn cpuset(cgroup: &str, file: &str) -> String {
    let name = cgroup.trim_start_matches('/');
    let v1 = Path::new("/sys/fs/cgroup/cpuset").join(name).join(file);
    let v2 = Path::new("/sys/fs/cgroup").join(name).join(file);
    let path = if v1.exists() { v1 } else { v2 };
    let text = fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.trim().to_owned()
}

fn pinned_and_in_its_network(runtime: &Runtime) {
    block_on(async {
        let mut host = Host::new(runtime);
        let name = format!("fc-{}", host.vm_id);
        let netns = |verb| {
            let status = Command::new("ip").args(["netns", verb, &name]).status();
            assert!(status.unwrap().success());
        };
        netns("add");
        let path = Path::new("/run/netns").join(&name);
        host.request = JailRequest {
            net_ns: Some(path.clone()),
            cpus: "0".parse().unwrap(),
            mems: "0".parse().unwrap(),
            cgroup_path: format!("/{name}/deep"),
            ..host.request.clone()
        };
        let (jail, vmm, _) = host.start().await;
        let cgroup = format!("/{name}/deep/{}", host.vm_id);
        assert_eq!(jail.cgroup_path(), Some(&*cgroup));
        let proc = format!("/proc/{}", vmm.pid());
        let of_vmm = fs::metadata(format!("{proc}/ns/net")).unwrap();
        assert_eq!(of_vmm.ino(), path.metadata().unwrap().ino());
        let groups = fs::read_to_string(format!("{proc}/cgroup")).unwrap();
        assert!(groups.contains(&cgroup), "{groups}");
        let status = fs::read_to_string(format!("{proc}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!(field("Cpus_allowed_list:"), "0");
        assert_eq!(field("Mems_allowed_list:"), "0");
        for file in ["cpuset.cpus", "cpuset.mems"] {
            assert_eq!(cpuset(&cgroup, file), "0", "{file}");
        }
        end(jail, vmm, &host).await;
        netns("delete");
        // Parents are others' too, and stay; these are the test's own.
        let clean = format!("cd /sys/fs/cgroup; rmdir {name}/deep {name} */{name}/deep */{name}");
        let _ = Command::new("sh").args(["-c", &clean]).output();
    });
}
