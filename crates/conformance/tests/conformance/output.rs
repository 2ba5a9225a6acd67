//! The log and its format. The metrics need a guest: see `running`.

use std::path::Path;

use fc_conformance::vmm::Vmm;
use serde_json::{Value, json};

use crate::OnBinary;

pub const CASES: &[(&str, OnBinary)] = &[
    ("output::log_of_the_command_line", command_line),
    ("output::log_of_the_api", api),
    ("output::log_into_a_full_pipe_blocks_nothing", full_pipe),
];

fn read(directory: &Path, name: &str) -> String {
    std::fs::read_to_string(directory.join(name)).unwrap()
}

/// `2024-01-31T12:34:56.123456789 [id:thread:LEVEL:file:line] text`
fn parts(line: &str) -> (&str, &str) {
    let (time, rest) = line.split_once(" [").unwrap_or_else(|| panic!("{line:?}"));
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000000000", "{line:?}");
    rest.split_once("] ").unwrap_or_else(|| panic!("{line:?}"))
}

fn command_line(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let args = ["--log-path", "log", "--level", "Info"];
    let vmm = Vmm::start(binary, directory.path(), &args);
    assert_eq!(vmm.state(), "Not started");
    let log = read(directory.path(), "log");
    let origins: Vec<_> = log.lines().map(|line| parts(line).0).collect();
    assert!(
        origins
            .iter()
            .all(|origin| origin.starts_with("conformance-1:") && origin.matches(':').count() == 1),
        "{log}"
    );
    assert!(log.contains("] Running Firecracker v"), "{log}");
    let request = r#"The API server received a Get request on "/"."#;
    assert!(log.contains(request), "{log}");
}

fn api(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    let logger =
        json!({ "log_path": "log", "level": "Info", "show_level": true, "show_log_origin": true });
    vmm.accept("PUT", "/logger", &logger);
    vmm.accept("PATCH", "/machine-config", &json!({ "vcpu_count": 2 }));
    let fault = vmm.refuse("PUT", "/boot-source", &json!({ "kernel_image_path": "no" }));
    let log = read(directory.path(), "log");
    let has = |level: &str, text: &str| {
        let found = log.lines().map(parts).any(|(origin, said)| {
            let parts: Vec<_> = origin.split(':').collect();
            let [id, _thread, at, file, line] = parts[..] else {
                panic!("{origin}");
            };
            assert!(id == "conformance-1" && file.ends_with(".rs") && line.parse::<u32>().is_ok());
            at == level && said == text
        });
        assert!(found, "no {level} {text:?} in {log}");
    };
    let body = r#"with body "{\"vcpu_count\":2}"."#;
    has(
        "INFO",
        &format!("The API server received a Patch request on \"/machine-config\" {body}"),
    );
    has(
        "INFO",
        "The request was executed successfully. Status code: 204 No Content.",
    );
    has(
        "ERROR",
        &format!("Received Error. Status code: 400 Bad Request. Message: {fault}"),
    );

    // Less is logged at once, and nothing when that is asked for.
    for (level, grows) in [("Error", false), ("Debug", true), ("Off", false)] {
        vmm.accept("PUT", "/logger", &json!({ "level": level }));
        let before = read(directory.path(), "log").len();
        assert!(vmm.get("/version").is_object());
        let after = read(directory.path(), "log").len();
        assert_eq!(after > before, grows, "{level}");
    }
}

/// Nobody reads the pipe: log lines are lost, requests are not.
fn full_pipe(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("log.fifo");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    vmm.accept(
        "PUT",
        "/logger",
        &json!({ "log_path": "log.fifo", "level": "Debug" }),
    );
    let long = "a".repeat(800);
    let mut connection = vmm.connect();
    for _ in 0..120 {
        let answer = connection.request("GET", &format!("/{long}"), "");
        assert_eq!((answer.status, answer.body == Value::Null), (400, false));
    }
}
