//! Templates that are kept, written over, and refused.

use super::*;

fn read(text: &str) -> Result<Template, TemplateError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("template.json");
    std::fs::write(&path, text).unwrap();
    Template::read(&path)
}

fn overrides<'a>() -> Overrides<'a> {
    Overrides {
        args: &[],
        env: &[],
        user: User::new(123, 456).unwrap(),
        cgroups_path: "/firecracker-containerd/vm",
        net_ns: None,
        cpus: "",
        mems: "",
        drives: Path::new("/vm/drives"),
        read_only: &[],
        devices: &[],
    }
}

fn network(spec: &Value) -> Vec<&Value> {
    let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
    namespaces
        .iter()
        .filter(|it| it["type"] == "network")
        .collect()
}

#[test]
fn what_a_jail_decides_is_written_over_and_the_rest_is_kept() {
    let template = read(
        r#"{"ociVersion": "1.0.2", "hostname": "jail", "x": [1], "root": {"path": "/", "readonly": true},
            "process": {"terminal": true, "args": ["sh"], "cwd": "/tmp", "noNewPrivileges": true, "env": ["A=b"],
                        "user": {"uid": 0, "gid": 0, "umask": 63}},
            "mounts": [{"destination": "/proc"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}],
                      "rootfsPropagation": "private",
                      "resources": {"cpu": {"cpus": "7", "shares": 5}, "pids": {"limit": 3},
                                    "devices": [{"allow": false, "access": "rwm"}]}}}"#,
    )
    .unwrap();
    let args = ["/firecracker".to_owned(), "--id".to_owned()];
    let env = ["C=d".to_owned()];
    let spec = template
        .apply(&Overrides {
            args: &args,
            env: &env,
            ..overrides()
        })
        .unwrap();
    let process = &spec["process"];
    assert_eq!(process["args"], json!(args));
    assert_eq!(process["env"], json!(["A=b", "C=d"]));
    assert_eq!(
        process["user"],
        json!({ "uid": 123, "gid": 456, "umask": 63 })
    );
    assert_eq!(process["terminal"], false);
    assert_eq!(process["cwd"], "/");
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(spec["root"], json!({ "path": "rootfs", "readonly": false }));
    assert_eq!(spec["hostname"], "jail");
    assert_eq!(spec["x"], json!([1]));
    let linux = &spec["linux"];
    assert_eq!(linux["cgroupsPath"], "/firecracker-containerd/vm");
    assert_eq!(linux["rootfsPropagation"], "rslave");
    let cpu = json!({ "cpus": "", "mems": "", "shares": 5 });
    assert_eq!(linux["resources"]["cpu"], cpu, "always written over");
    assert_eq!(linux["resources"]["pids"]["limit"], 3);
    assert_eq!(network(&spec)[0]["path"], "/run/netns/x");
    let drives = &spec["mounts"][1];
    assert_eq!(
        (&drives["destination"], &drives["source"]),
        (&json!("/drives"), &json!("/vm/drives"))
    );
}

/// Programs in Go write null for a map or list that they do not have.
#[test]
fn null_is_nothing() {
    let nulls = read(
        r#"{"annotations": null, "hooks": null, "mounts": null, "root": null,
            "process": {"user": null, "env": null, "args": null, "rlimits": null, "capabilities": null},
            "linux": {"namespaces": null, "devices": null, "seccomp": null, "sysctl": null,
                      "resources": {"cpu": null, "devices": null, "pids": null}}}"#,
    );
    let nothing = read(r#"{"process": {}, "linux": {}}"#).unwrap();
    let mut spec = nulls.unwrap().apply(&overrides()).unwrap();
    prune(&mut spec);
    assert_eq!(spec, nothing.apply(&overrides()).unwrap());
}

/// Takes away what is null.
fn prune(value: &mut Value) {
    if let Some(object) = value.as_object_mut() {
        object.retain(|_, value| !value.is_null());
        object.values_mut().for_each(prune);
    }
}

#[test]
fn the_network_is_never_the_host_s() {
    let without = read(r#"{"process": {}, "linux": {"namespaces": null}}"#).unwrap();
    let spec = without.apply(&overrides()).unwrap();
    assert_eq!(network(&spec), [&json!({ "type": "network" })]);
    let net_ns = Some(Path::new("/run/netns/vm"));
    let asked = Overrides {
        net_ns,
        ..overrides()
    };
    let with_path = json!({ "type": "network", "path": "/run/netns/vm" });
    assert_eq!(network(&without.apply(&asked).unwrap()), [&with_path]);
    let other = r#"{"process": {}, "linux": {"namespaces": [{"type": "network", "path": "/x"}]}}"#;
    let spec = read(other).unwrap().apply(&asked).unwrap();
    assert_eq!(network(&spec), [&with_path]);
}

#[test]
fn a_network_of_the_template_has_to_be_one() {
    let with = |path: &str| {
        let text =
            r#"{"process": {}, "linux": {"namespaces": [{"type": "network", "path": PATH}]}}"#;
        read(&text.replace("PATH", path)).unwrap().check_network()
    };
    for good in ["null", "\"\"", "\"/proc/self/ns/net\""] {
        with(good).unwrap();
    }
    for bad in ["\"/nonexistent\"", "\"/proc/self/ns/uts\""] {
        let error = with(bad).unwrap_err();
        assert!(matches!(error, TemplateError::Network { .. }), "{error}");
        assert!(
            error.to_string().contains("jailer.runc_config_path"),
            "{error}"
        );
    }
}

#[test]
fn the_mounts_are_never_the_host_s() {
    let mounts = |text: &str| {
        let spec = read(text).unwrap().apply(&overrides()).unwrap();
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap().clone();
        let of_mounts = namespaces.into_iter().filter(|it| it["type"] == "mount");
        of_mounts.collect::<Vec<_>>()
    };
    for text in [
        r#"{"process": {}, "linux": {"namespaces": [{"type": "pid"}]}}"#,
        r#"{"process": {}, "linux": {"namespaces": [{"type": "mount"}]}}"#,
    ] {
        assert_eq!(mounts(text), [json!({ "type": "mount" })]);
    }
}

#[test]
fn a_vmm_s_needs_are_added_once() {
    let template = read(
        r#"{"process": {}, "linux": {"devices": [{"path": "/dev/net/tun"}],
                                     "resources": {"devices": [{"allow": false, "access": "rwm"}]}}}"#,
    )
    .unwrap();
    let device = |path: &str| Device {
        path: path.into(),
        major: 10,
        minor: 229,
    };
    let devices = ["/dev/null", "/dev/net/tun", "/dev/fuse"].map(device);
    let read_only = ["/usr/bin/qemu".into()];
    let spec = template
        .apply(&Overrides {
            read_only: &read_only,
            devices: &devices,
            ..overrides()
        })
        .unwrap();
    let nodes = spec["linux"]["devices"].as_array().unwrap();
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[1]["path"], "/dev/fuse");
    let rules = &spec["linux"]["resources"]["devices"];
    assert_eq!(rules[0]["allow"], false, "{rules}");
    assert_eq!(
        rules[1],
        json!({ "allow": true, "type": "b", "access": "rw" })
    );
    assert_eq!(rules[2]["minor"], 229);
    let mount = &spec["mounts"][1];
    assert_eq!(mount["destination"], "/usr/bin/qemu");
    assert_eq!(mount["options"][1], "ro");
}

#[test]
fn a_template_that_is_none_is_refused_by_name() {
    for (text, expected) in [
        ("{", "is no JSON"),
        ("[]", "is no JSON"),
        (r#"{"linux": {}}"#, "lacks `process`"),
        (r#"{"process": {}}"#, "lacks `linux`"),
        (r#"{"process": {}, "linux": []}"#, "lacks `linux`"),
        (
            r#"{"process": {"user": 1}, "linux": {}}"#,
            "lacks `process.user`",
        ),
        (
            r#"{"process": {"env": {}}, "linux": {}}"#,
            "lacks `process.env`",
        ),
        (
            r#"{"process": {}, "mounts": 1, "linux": {}}"#,
            "lacks `mounts`",
        ),
        (
            r#"{"process": {}, "linux": {"namespaces": {}}}"#,
            "lacks `linux.namespaces`",
        ),
        (
            r#"{"process": {}, "linux": {"devices": 1}}"#,
            "lacks `linux.devices`",
        ),
        (
            r#"{"process": {}, "linux": {"resources": 1}}"#,
            "lacks `linux.resources`",
        ),
        (
            r#"{"process": {}, "linux": {"resources": {"cpu": 1}}}"#,
            "lacks `linux.resources.cpu`",
        ),
        (
            r#"{"process": {}, "linux": {"resources": {"devices": 1}}}"#,
            "lacks `linux.resources.devices`",
        ),
        (
            r#"{"process": {"user": {"uid": 5}}, "linux": {}}"#,
            "sets process.user to 5:0",
        ),
        (
            r#"{"process": {"user": {"gid": 6}}, "linux": {}}"#,
            "sets process.user to 0:6",
        ),
        (
            r#"{"process": {"user": {"uid": "1000"}}, "linux": {}}"#,
            "lacks `process.user.uid`, which must be 0 or missing (configuration key jailer.runc_config_path)",
        ),
        (
            r#"{"process": {"user": {"gid": -1}}, "linux": {}}"#,
            "lacks `process.user.gid`",
        ),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let missing = Template::read(Path::new("/nonexistent")).unwrap_err();
    let endless = Template::read(Path::new("/dev/zero")).unwrap_err();
    assert!(matches!(endless, TemplateError::Read { .. }), "{endless}");
    assert!(missing.to_string().contains("jailer.runc_config_path"));
}
