//! HTTP itself: connections, headers, limits, what is no HTTP.

use std::path::Path;

use fc_conformance::vmm::Vmm;
use serde_json::{Value, json};

use crate::OnBinary;

pub const CASES: &[(&str, OnBinary)] = &[
    ("http::connections_stay_open", connections_stay_open),
    ("http::pipelined_requests", pipelined),
    ("http::headers", headers),
    ("http::body_after_100_continue", expect_continue),
    ("http::connections_at_once", connections_at_once),
    ("http::body_limit", body_limit),
    ("http::deprecated_fields_are_told", deprecated_fields),
    ("http::malformed", malformed),
];

fn connections_stay_open(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let mut connection = vmm.connect();
    let config = r#"{"vcpu_count":1,"mem_size_mib":256}"#;
    for _ in 0..3 {
        assert_eq!(connection.request("GET", "/", "").status, 200);
        let put = connection.request("PUT", "/machine-config", config);
        assert_eq!(put.status, 204);
        // A refusal does not end the connection.
        assert_eq!(connection.request("GET", "/nothing", "").status, 400);
    }
}

fn pipelined(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let mut connection = vmm.connect();
    connection.send(
        b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\nGET /machine-config HTTP/1.1\r\n\r\n",
    );
    assert!(connection.answer().body["firecracker_version"].is_string());
    assert_eq!(connection.answer().body["mem_size_mib"], 128);
    // A whole URI is as good as a path.
    connection.send(b"GET http://localhost/version HTTP/1.1\r\n\r\n");
    assert!(connection.answer().body["firecracker_version"].is_string());
}

fn headers(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let body = json!({ "vcpu_count": 1, "mem_size_mib": 128 });
    for (method, path, body) in [
        ("GET", "/", Value::Null),
        ("GET", "/nothing", Value::Null),
        ("PUT", "/machine-config", body),
    ] {
        let answer = vmm.request(method, path, &body);
        assert_eq!(answer.header("server"), Some("Firecracker API"), "{path}");
        let json = answer.header("content-type");
        if answer.status == 204 {
            assert_eq!(json, None, "{answer:?}");
        } else {
            assert_eq!(json, Some("application/json"), "{answer:?}");
        }
    }
}

fn expect_continue(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let mut connection = vmm.connect();
    let body = r#"{"vcpu_count":1,"mem_size_mib":192}"#;
    let head = format!(
        "PUT /machine-config HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.send(head.as_bytes());
    assert_eq!(connection.answer().status, 100);
    connection.send(body.as_bytes());
    assert_eq!(connection.answer().status, 204);
    assert_eq!(vmm.get("/machine-config")["mem_size_mib"], 192);
}

/// Firecracker serves ten.
fn connections_at_once(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let mut connections: Vec<_> = (0..8).map(|_| vmm.connect()).collect();
    for connection in &mut connections {
        connection.send(b"GET /version HTTP/1.1\r\n");
    }
    for connection in connections.iter_mut().rev() {
        connection.send(b"\r\n");
        assert_eq!(connection.answer().status, 200);
    }
}

/// A body that is too long is a broken request, not one that is answered with a reason. (What is answered is not
/// quite JSON either.)
fn body_limit(binary: &Path) {
    for (args, limit) in [
        (&[][..], 51_200),
        (&["--http-api-max-payload-size", "1000"], 1000),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let vmm = Vmm::start(binary, directory.path(), args);
        let put = |length| {
            let body = " ".repeat(length);
            vmm.connect().request("PUT", "/logger", &body)
        };
        // Just short enough to be looked at.
        let fault = put(limit).fault().to_owned();
        assert!(fault.contains("deserializing"), "{fault}");
        let answer = put(limit + 1);
        let text = format!(
            "Request payload with size {} is larger than the limit of {limit} allowed by server.",
            limit + 1
        );
        assert_eq!(answer.status, 400, "{answer:?}");
        assert!(answer.body.to_string().contains(&text), "{answer:?}");
        assert_eq!(vmm.state(), "Not started");
    }
}

fn deprecated_fields(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    for (path, body, deprecated) in [
        (
            "/vsock",
            json!({ "guest_cid": 3, "uds_path": "v.sock" }),
            None,
        ),
        (
            "/vsock",
            json!({ "vsock_id": "v", "guest_cid": 3, "uds_path": "v.sock" }),
            Some("true"),
        ),
        (
            "/machine-config",
            json!({ "vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "None" }),
            Some("true"),
        ),
    ] {
        let answer = vmm.request("PUT", path, &body);
        assert_eq!(
            (answer.status, answer.header("deprecation")),
            (204, deprecated),
            "{path} {body}"
        );
    }
}

fn malformed(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let malformed: [&[u8]; 5] = [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"DELETE /drives/a HTTP/1.1\r\n\r\n",
        b"PUT /logger HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ];
    for bytes in malformed {
        let mut connection = vmm.connect();
        connection.send(bytes);
        let status = connection.answer().status;
        assert_eq!(status, 400, "{}", bytes.escape_ascii());
    }
    // Nobody else is disturbed, nor by those who leave half way.
    vmm.connect()
        .send(b"PUT /logger HTTP/1.1\r\nContent-Length: 100\r\n\r\n{");
    assert_eq!(vmm.state(), "Not started");
}
