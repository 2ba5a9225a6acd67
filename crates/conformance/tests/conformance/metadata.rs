//! The microVM metadata service: its data store on the host, and what its configuration must be.

use std::path::Path;

use fc_conformance::vmm::Vmm;
use serde_json::{Value, json};

use crate::OnBinary;

pub const CASES: &[(&str, OnBinary)] = &[
    ("metadata::put_patch_and_get", put_patch_and_get),
    ("metadata::size_limit", size_limit),
    ("metadata::content_from_a_file", from_file),
    ("metadata::bad_configurations", bad_configurations),
];

const NOT_INITIALIZED: &str = "MMDS error: The MMDS data store is not initialized.";

fn put_patch_and_get(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    assert_eq!(vmm.get("/mmds"), json!({}));
    assert_eq!(
        vmm.refuse("PATCH", "/mmds", &json!({ "a": 1 })),
        NOT_INITIALIZED
    );
    vmm.accept(
        "PUT",
        "/mmds",
        &json!({ "a": { "b": 1, "c": [1, 2] }, "d": "e", "f": null }),
    );
    // RFC 7396: objects are merged, null removes, everything else replaces.
    let patch = json!({ "a": { "b": null, "c": [3], "new": { "x": null, "y": 2 } }, "d": { "g": true }, "gone": null });
    vmm.accept("PATCH", "/mmds", &patch);
    assert_eq!(
        vmm.get("/mmds"),
        json!({ "a": { "c": [3], "new": { "y": 2 } }, "d": { "g": true }, "f": null })
    );
    // What is put replaces everything, and may be any JSON.
    vmm.accept("PUT", "/mmds", &json!("text"));
    assert_eq!(vmm.get("/mmds"), "text");
    vmm.accept("PATCH", "/mmds", &json!({ "a": 1 }));
    assert_eq!(vmm.get("/mmds/whatever/follows"), json!({ "a": 1 }));
    assert_eq!(
        vmm.refuse("PUT", "/mmds/nothing", &json!({})),
        "Unrecognized PUT request path `nothing`."
    );
    for method in ["PUT", "PATCH"] {
        let answer = vmm.connect().request(method, "/mmds", "{");
        assert_eq!(answer.status, 400);
        assert!(answer.fault().contains("EOF while parsing"), "{answer:?}");
    }
    assert_eq!(vmm.get("/mmds"), json!({ "a": 1 }));
}

/// The store's limit is that of a body unless there is one of its own.
fn size_limit(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &["--mmds-size-limit", "100"]);
    let exceeded = |method: &str, body: &Value| {
        let answer = vmm.request(method, "/mmds", body);
        let fault = "MMDS limit exceeded error: The MMDS patch request doesn't fit.";
        assert_eq!((answer.status, answer.fault()), (413, fault), "{answer:?}");
    };
    // Quotes count too.
    exceeded("PUT", &json!("a".repeat(99)));
    let most = json!({ "a": "b".repeat(92) });
    vmm.accept("PUT", "/mmds", &most);
    exceeded("PATCH", &json!({ "b": 1 }));
    assert_eq!(vmm.get("/mmds"), most);
    vmm.accept("PATCH", "/mmds", &json!({ "a": null, "b": 1 }));
}

fn from_file(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("metadata"), r#"{"a":1}"#).unwrap();
    let vmm = Vmm::start(binary, directory.path(), &["--metadata", "metadata"]);
    assert_eq!(vmm.get("/mmds"), json!({ "a": 1 }));
    vmm.accept("PATCH", "/mmds", &json!({ "b": 2 }));
    assert_eq!(vmm.get("/mmds"), json!({ "a": 1, "b": 2 }));
}

fn bad_configurations(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let refuse = |body: Value| vmm.refuse("PUT", "/mmds/config", &body);
    let config = "MMMDS config error: ";
    for address in ["10.0.0.1", "169.254.0.1", "169.254.255.1"] {
        let body = json!({ "network_interfaces": ["eth0"], "ipv4_address": address });
        let fault = format!("{config}The MMDS IPv4 address is not link local.");
        assert_eq!(refuse(body), fault, "{address}");
    }
    assert_eq!(
        refuse(json!({ "version": "V2", "network_interfaces": [] })),
        format!(
            "{config}The list of network interface IDs that allow forwarding MMDS requests is empty."
        )
    );
    assert_eq!(
        refuse(json!({ "version": "V2", "network_interfaces": ["eth0"] })),
        format!(
            "{config}The list of network interface IDs provided contains at least one ID that does not correspond to \
             any existing network interface."
        )
    );
    for body in [
        json!({}),
        json!({ "network_interfaces": ["eth0"], "version": "V3" }),
        json!({ "network_interfaces": ["eth0"], "ipv4_address": "somewhere" }),
        json!({ "network_interfaces": ["eth0"], "other": 1 }),
    ] {
        let fault = refuse(body);
        assert!(fault.starts_with(crate::requests::JSON), "{fault}");
    }
}
