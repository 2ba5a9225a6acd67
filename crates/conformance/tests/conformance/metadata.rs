//! The microVM metadata service: its data store on the host, and what its configuration must be.

use std::path::Path;

use fc_conformance::vmm::Vmm;
use serde_json::{Value, json};

use crate::devices::{Kind, MAC, Tap, interface, load};
use crate::running::Guest;
use crate::{OnBinary, OnGuest};

pub const CASES: &[(&str, OnBinary)] = &[
    ("metadata::put_patch_and_get", put_patch_and_get),
    ("metadata::size_limit", size_limit),
    ("metadata::content_from_a_file", from_file),
    ("metadata::bad_configurations", bad_configurations),
];

/// Cases without a guest that need a network interface.
pub const BEFORE_START: &[(&str, Kind, OnBinary)] =
    &[("metadata::configuration", Kind::Network, configuration)];

/// Cases on the running guest's network interface.
pub const RUNNING: &[(&str, Kind, OnGuest)] = &[(
    "metadata::reaches_the_guest",
    Kind::Network,
    reaches_the_guest,
)];

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

fn configuration(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let tap = Tap::new("cfg").unwrap_or_else(|why| panic!("{why}"));
    vmm.accept(
        "PUT",
        "/network-interfaces/eth0",
        &interface("eth0", &tap.name, MAC),
    );
    assert_eq!(vmm.get("/vm/config")["mmds-config"], Value::Null);
    let config = json!({ "network_interfaces": ["eth0"], "ipv4_address": "169.254.170.2" });
    let answer = vmm.request("PUT", "/mmds/config", &config);
    // Version 1, the default, is deprecated.
    assert_eq!(
        (answer.status, answer.header("deprecation")),
        (204, Some("true"))
    );
    let config = json!({ "version": "V2", "network_interfaces": ["eth0"], "imds_compat": true });
    vmm.accept("PUT", "/mmds/config", &config);
    assert_eq!(
        vmm.get("/vm/config")["mmds-config"],
        json!({
            "version": "V2", "network_interfaces": ["eth0"], "ipv4_address": "169.254.169.254", "imds_compat": true,
        })
    );
    let config = json!({ "version": "V2", "network_interfaces": ["eth0", "eth1"] });
    let fault = vmm.refuse("PUT", "/mmds/config", &config);
    assert!(fault.contains("at least one ID"), "{fault}");
}

/// What the host puts and patches, the guest gets over its interface, with a token, and nobody else does.
fn reaches_the_guest(guest: &mut Guest) {
    load(guest, &["failover", "net_failover", "virtio_net"]);
    guest.shell(
        "ip addr add 172.16.0.2/30 dev eth0; ip link set eth0 up; ip route add 169.254.169.254 dev eth0; echo",
    );
    let large = "x".repeat(40_000);
    guest.vmm.accept(
        "PUT",
        "/mmds",
        &json!({ "a": { "b": "c" }, "large": large }),
    );
    // The body's last line, by hand: a static busybox's wget wants libraries to resolve even an address.
    let ask = |request: &str| {
        let lines = request.replace("; ", "\\r\\n");
        format!("printf '{lines}\\r\\n\\r\\n' | nc -w 20 169.254.169.254 80 | tail -n 1")
    };
    let fault = guest.shell(&ask("GET /a/b HTTP/1.1"));
    assert!(fault.starts_with("No MMDS token provided."), "{fault}");
    let fault = guest.shell(&ask("GET /a/b HTTP/1.1; X-metadata-token: no"));
    assert_eq!(fault, "MMDS token not valid.");
    let open = "PUT /latest/api/token HTTP/1.1; X-metadata-token-ttl-seconds: 300";
    let token = guest.shell(&ask(open));
    assert!(token.len() >= 32 && !token.contains(' '), "{token}");
    let get = |path: &str| ask(&format!("GET {path} HTTP/1.1; X-metadata-token: {token}"));
    assert_eq!(guest.shell(&get("/a/b")), "c");
    assert_eq!(guest.shell(&get("/no")), "Resource not found: /no.");
    guest
        .vmm
        .accept("PATCH", "/mmds", &json!({ "a": { "b": null, "new": {} } }));
    assert_eq!(guest.shell(&get("/a")), "new/");
    let json = ask(&format!(
        "GET /a HTTP/1.1; Accept: application/json; X-metadata-token: {token}"
    ));
    assert_eq!(guest.shell(&json), r#"{"new":{}}"#);
    let large = guest.shell(&format!("{} | wc -c", get("/large")));
    assert_eq!(large, "40000");
    assert_eq!(guest.vmm.get("/mmds")["a"], json!({ "new": {} }));
}
