//! What is a request at all: paths, methods, ids, the shape of bodies, and the words for what is none.

use std::path::Path;

use fc_conformance::vmm::Vmm;
use serde_json::json;

use crate::{OnBinary, file};

pub const CASES: &[(&str, OnBinary)] = &[
    ("requests::paths_and_methods", paths_and_methods),
    ("requests::ids", ids),
    ("requests::bodies_are_strict", bodies_are_strict),
    ("requests::exact_words_about_json", exact_words),
];

/// How Firecracker begins to say that a body is not what it should be.
pub const JSON: &str = "An error occurred when deserializing the json body of a request: ";

fn paths_and_methods(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let unknown = "Invalid request method and/or path: ";
    for (method, path, body, fault) in [
        ("GET", "/", "{}", "GET request cannot have a body.".into()),
        ("GET", "/nothing", "", format!("{unknown}GET nothing.")),
        ("GET", "/actions", "", format!("{unknown}GET actions.")),
        ("GET", "/vm", "", format!("{unknown}GET vm.")),
        ("PUT", "/nothing", "{}", format!("{unknown}PUT nothing.")),
        ("PUT", "/nothing", "", "Empty PUT request.".into()),
        ("PUT", "/vm", "{}", format!("{unknown}PUT vm.")),
        (
            "PATCH",
            "/nothing",
            "{}",
            format!("{unknown}PATCH nothing."),
        ),
        (
            "PATCH",
            "/actions",
            "{}",
            format!("{unknown}PATCH actions."),
        ),
        ("PUT", "/actions", "", "Empty PUT request.".into()),
        ("PATCH", "/vm", "", "Empty PATCH request.".into()),
        (
            "PATCH",
            "/machine-config",
            "{}",
            "Empty PATCH request.".into(),
        ),
    ] {
        let answer = vmm.connect().request(method, path, body);
        assert_eq!(
            (answer.status, answer.fault()),
            (400, fault.as_str()),
            "{method} {path} {body}"
        );
    }
    for path in [
        "/",
        "//",
        "/version",
        "/version/",
        "//version",
        "/vm/config",
        "/machine-config",
    ] {
        assert!(vmm.get(path).is_object(), "{path}");
    }
}

fn ids(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    file(directory.path(), "disk", 512, 0);
    let drive = |id: &str| json!({ "drive_id": id, "path_on_host": "disk", "is_root_device": false, "is_read_only": true });
    let update = json!({ "drive_id": "a", "path_on_host": "disk" });
    let invalid = "API Resource IDs can only contain alphanumeric characters and underscores.";
    let mismatch = "The id from the path does not match the id from the body!";
    for (method, path, body, fault) in [
        ("PUT", "/drives", drive("a"), "The ID cannot be empty."),
        ("PUT", "/drives/", drive(""), "The ID cannot be empty."),
        (
            "PATCH",
            "/drives",
            update.clone(),
            "The ID cannot be empty.",
        ),
        ("PUT", "/drives/a-b", drive("a-b"), invalid),
        ("PUT", "/drives/a%20b", drive("a b"), invalid),
        ("PATCH", "/drives/a.b", update.clone(), invalid),
        ("PUT", "/drives/b", drive("a"), mismatch),
        ("PATCH", "/drives/b", update, mismatch),
    ] {
        assert_eq!(vmm.refuse(method, path, &body), fault, "{method} {path}");
    }
    let long = "a_Z9".repeat(50);
    for id in ["a", "_", &long] {
        vmm.accept("PUT", &format!("/drives/{id}"), &drive(id));
    }
    // What follows the id is not looked at.
    vmm.accept("PUT", "/drives/x/y", &drive("x"));
}

fn bodies_are_strict(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    for (method, path, body) in [
        ("PUT", "/boot-source", "{"),
        ("PUT", "/boot-source", "[]"),
        ("PUT", "/boot-source", "{}"),
        (
            "PUT",
            "/boot-source",
            r#"{"kernel_image_path":"k","initrd":"x"}"#,
        ),
        ("PUT", "/boot-source", r#"{"kernel_image_path":null}"#),
        ("PUT", "/machine-config", r#"{"vcpu_count":1}"#),
        ("PUT", "/machine-config", r#"{"mem_size_mib":128}"#),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":128,"ht_enabled":true}"#,
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":256,"mem_size_mib":128}"#,
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":-1,"mem_size_mib":128}"#,
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":"128"}"#,
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":128,"smt":"yes"}"#,
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":128,"huge_pages":"1G"}"#,
        ),
        ("PATCH", "/machine-config", r#"{"vcpus":1}"#),
        ("PUT", "/drives/a", "{}"),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","path_on_host":"p","is_read_only":true}"#,
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":"no"}"#,
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"mode":"ro"}"#,
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"cache_type":"Fast"}"#,
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"io_engine":"Threads"}"#,
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"rate_limiter":{"iops":{}}}"#,
        ),
        (
            "PUT",
            "/drives/a",
            r#"{"drive_id":"a","is_root_device":false,"rate_limiter":{"ops":{"size":1}}}"#,
        ),
        ("PATCH", "/drives/a", r#"{"path_on_host":"p"}"#),
        (
            "PATCH",
            "/drives/a",
            r#"{"drive_id":"a","is_read_only":true}"#,
        ),
        ("PUT", "/vsock", r#"{"guest_cid":3}"#),
        ("PUT", "/vsock", r#"{"uds_path":"v"}"#),
        (
            "PUT",
            "/vsock",
            r#"{"guest_cid":4294967296,"uds_path":"v"}"#,
        ),
        (
            "PUT",
            "/vsock",
            r#"{"guest_cid":3,"uds_path":"v","port":1}"#,
        ),
        ("PUT", "/entropy", r#"{"source":"/dev/random"}"#),
        ("PUT", "/logger", r#"{"level":"loud"}"#),
        ("PUT", "/logger", r#"{"path":"log"}"#),
        ("PUT", "/metrics", "{}"),
        ("PUT", "/actions", "{}"),
        ("PUT", "/actions", r#"{"action_type":"Fly"}"#),
        (
            "PUT",
            "/actions",
            r#"{"action_type":"InstanceStart","payload":""}"#,
        ),
        ("PATCH", "/vm", r#"{"state":"Running"}"#),
        ("PATCH", "/vm", r#"{"state":"Paused","why":""}"#),
    ] {
        let answer = vmm.connect().request(method, path, body);
        assert_eq!(answer.status, 400, "{method} {path} {body}");
        assert!(
            answer.fault().starts_with(JSON),
            "{method} {path} {body}: {answer:?}"
        );
    }
    assert_eq!(vmm.get("/vm/config")["drives"], json!([]));
}

fn exact_words(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    for (path, body, rest) in [
        (
            "/vsock",
            r#"{"guest_cid":3,"uds_path":"v","x":1}"#,
            "unknown field `x`, expected one of `vsock_id`, `guest_cid`, `uds_path` at line 1 column 33.",
        ),
        (
            "/machine-config",
            r#"{"vcpu_count":1}"#,
            "missing field `mem_size_mib` at line 1 column 16.",
        ),
        (
            "/actions",
            r#"{"action_type":"Fly"}"#,
            "unknown variant `Fly`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel` at line 1 column 20.",
        ),
        (
            "/boot-source",
            "{",
            "EOF while parsing an object at line 1 column 1.",
        ),
        (
            "/logger",
            r#"{"level":"loud"}"#,
            "Invalid LevelFilter at line 1 column 16.",
        ),
    ] {
        let answer = vmm.connect().request("PUT", path, body);
        assert_eq!(answer.fault(), format!("{JSON}{rest}"), "{path} {body}");
    }
}
