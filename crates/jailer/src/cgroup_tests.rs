//! Paths, and hosts with cgroup v1, v2 and both.

use super::*;

const V1: &str = "\
31 30 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
33 30 0:28 / /run/same rw - cgroup cgroup rw,cpu,cpuacct
";
const V2: &str = "26 23 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

fn paths(hierarchies: &Hierarchies) -> Vec<(&str, bool)> {
    let mounts = hierarchies.mounts.iter();
    mounts
        .map(|mount| (mount.path.to_str().unwrap(), mount.v2))
        .collect()
}

#[test]
fn hierarchies_of_every_kind_of_host() {
    let v1 = Hierarchies::parse(V1);
    let v1_paths = [
        ("/sys/fs/cgroup/cpuset", false),
        ("/sys/fs/cgroup/cpu,cpuacct", false),
    ];
    assert_eq!(paths(&v1), v1_paths);
    assert!(v1.mounts[0].cpuset && !v1.mounts[1].cpuset);
    assert_eq!(paths(&Hierarchies::parse(V2)), [("/sys/fs/cgroup", true)]);
    let unified = V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified");
    let hybrid = Hierarchies::parse(&format!("{V1}{unified}"));
    assert_eq!(paths(&hybrid).len(), 3);
    let none = Hierarchies::parse("21 1 8:1 / / rw - ext4 /dev/sda1 rw\nnonsense\n");
    assert!(none.mounts.is_empty());
}

#[test]
fn a_custom_parent_and_the_default() {
    assert_eq!(
        candidates("", "ns", "vm").unwrap(),
        [
            "/firecracker-containerd/vm",
            "/firecracker-containerd/vm@ns"
        ]
    );
    assert_eq!(candidates("/mine", "ns", "vm").unwrap()[0], "/mine/vm");
    assert_eq!(
        candidates("mine/deep", "ns", "vm").unwrap()[0],
        "/mine/deep/vm"
    );
    for parent in ["..", "/a/../b", "/a/./b", "/a/."] {
        let error = candidates(parent, "ns", "vm").unwrap_err();
        assert!(matches!(error, CgroupError::Path(_)), "{parent}");
    }
}

/// A directory that stands for a host's only hierarchy.
fn host(directory: &Path, v2: bool) -> Hierarchies {
    let mount = |path: PathBuf, v2, cpuset| Mount { path, v2, cpuset };
    let mounts = if v2 {
        vec![mount(directory.join("unified"), true, false)]
    } else {
        vec![
            mount(directory.join("cpuset"), false, true),
            mount(directory.join("pids"), false, false),
            mount(directory.join("unified"), true, false),
        ]
    };
    Hierarchies { mounts }
}

#[test]
fn a_parent_that_is_a_file_is_no_claim_of_another_vm() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("tasks"), "").unwrap();
    let error = Hierarchies::at(directory.path()).claim("/tasks/vm");
    let error = error.unwrap_err().to_string();
    assert!(error.ends_with("/tasks"), "{error}");
}

#[test]
fn a_claim_is_made_once_and_where_processes_can_enter() {
    let directory = tempfile::tempdir().unwrap();
    for (v2, place) in [(false, "pids"), (true, "unified")] {
        let host = host(directory.path(), v2);
        assert!(host.claim("/parent/vm").unwrap());
        assert!(!host.claim("/parent/vm").unwrap());
        assert!(directory.path().join(place).join("parent/vm").is_dir());
        assert!(host.remove("/parent/vm", None, Duration::ZERO).is_empty());
        assert!(host.claim("/parent/vm").unwrap());
    }
    assert!(!directory.path().join("cpuset").exists());
}

#[test]
fn removal_goes_from_the_bottom_up_and_tells_all_that_stays() {
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path(), false);
    for path in ["pids/p/vm/a/b", "cpuset/p/vm", "unified/p/vm/c"] {
        fs::create_dir_all(directory.path().join(path)).unwrap();
    }
    // No directory of a real hierarchy is kept by a file; here it stands for a process.
    fs::write(directory.path().join("cpuset/p/vm/busy"), "").unwrap();
    fs::write(directory.path().join("unified/p/vm/c/busy"), "").unwrap();
    let errors = host.remove("/p/vm", None, Duration::ZERO);
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(!directory.path().join("pids/p/vm").exists());
    assert!(
        directory.path().join("pids/p").exists(),
        "others may use it"
    );
}

#[test]
fn processes_are_killed_and_reaped() {
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path(), true);
    let group = directory.path().join("unified/p/vm/below");
    fs::create_dir_all(&group).unwrap();
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    fs::write(group.join("cgroup.procs"), format!("0\n{}\n", child.id())).unwrap();
    host.kill("/p/vm", None, Duration::from_secs(10)).unwrap();
    assert!(child.wait().is_err(), "it has been waited for");
    host.kill("/none", None, Duration::ZERO).unwrap();
}

#[test]
fn a_number_that_another_process_has_got_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path(), true);
    let group = directory.path().join("unified/p/vm");
    fs::create_dir_all(&group).unwrap();
    let sleep = || std::process::Command::new("sleep").arg("60").spawn();
    let (mut one, mut other) = (sleep().unwrap(), sleep().unwrap());
    let open = |child: &std::process::Child| {
        let pid = i32::try_from(child.id()).unwrap();
        super::Member::open(pid).unwrap().unwrap()
    };
    let mut members = vec![open(&one), open(&other)];
    fs::write(group.join("cgroup.procs"), format!("{}\n", one.id())).unwrap();
    host.retain_members("/p/vm", &mut members).unwrap();
    let left: Vec<_> = members
        .iter()
        .map(|member| member.pid().as_raw_pid())
        .collect();
    assert_eq!(left, [i32::try_from(one.id()).unwrap()]);
    for child in [&mut one, &mut other] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn the_kernel_kills_a_group_where_it_can() {
    let directory = tempfile::tempdir().unwrap();
    let host = host(directory.path(), false);
    for path in ["unified/p/vm", "pids/p/vm"] {
        let group = directory.path().join(path);
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.kill"), "").unwrap();
    }
    host.kill_at_once("/p/vm");
    let written = |path| fs::read_to_string(directory.path().join(path)).unwrap();
    assert_eq!(written("unified/p/vm/cgroup.kill"), "1");
    assert_eq!(written("pids/p/vm/cgroup.kill"), "", "no file of version 1");
    host.kill_at_once("/none");
}
