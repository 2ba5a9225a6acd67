//! Options and exit codes.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use fc_conformance::vmm::{SOCKET, Vmm};
use rustix::process::Signal;

use crate::OnBinary;

pub const CASES: &[(&str, OnBinary)] = &[
    ("command_line::version", version),
    ("command_line::help", help),
    ("command_line::bad_arguments_end_with_153", bad_arguments),
    ("command_line::bad_level_ends_with_152", bad_level),
    ("command_line::bad_id_aborts", bad_id),
    ("command_line::bad_number_aborts", bad_numbers),
    ("command_line::other_failures_end_with_1", other_failures),
    (
        "command_line::config_file_that_cannot_be_used",
        bad_config_file,
    ),
    (
        "command_line::socket_must_be_new_and_stays",
        socket_must_be_new,
    ),
    (
        "command_line::options_of_the_jailer_are_taken",
        jailer_options,
    ),
    ("command_line::signals", signals),
];

/// Runs the VMM with what makes it end by itself.
fn run(binary: &Path, args: &[&str]) -> Output {
    Command::new(binary)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("Cannot start {}: {error}", binary.display()))
}

fn code(binary: &Path, args: &[&str]) -> Option<i32> {
    run(binary, args).status.code()
}

fn version(binary: &Path) {
    let output = run(binary, &["--version"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("Firecracker v"))
        .unwrap_or_else(|| panic!("{text:?}"));
    assert!(version.split('.').count() >= 3, "{version:?}");
}

fn help(binary: &Path) {
    let output = run(binary, &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout);
    for option in ["--api-sock", "--id", "--config-file", "--no-api", "--level"] {
        assert!(text.contains(option), "{option} is not in {text}");
    }
}

fn bad_arguments(binary: &Path) {
    let bad: [&[&str]; 9] = [
        &["--nonsense"],
        &["word"],
        &["--id"],
        &["--id", "--no-seccomp"],
        &["--no-api"],
        &["--id", "a", "--id", "b"],
        &["--show-level", "--show-level"],
        &["--seccomp-filter", "x", "--no-seccomp"],
        &["--no-seccomp", "yes"],
    ];
    for args in bad {
        assert_eq!(code(binary, args), Some(153), "{args:?}");
    }
}

fn bad_level(binary: &Path) {
    assert_eq!(code(binary, &["--level", "loud"]), Some(152));
}

/// Firecracker panics, and that is what its callers see.
fn aborts(output: &Output) -> bool {
    output.status.signal() == Some(Signal::ABORT.as_raw())
}

fn bad_numbers(binary: &Path) {
    for option in [
        "--http-api-max-payload-size",
        "--mmds-size-limit",
        "--start-time-us",
    ] {
        let output = run(binary, &["--api-sock", "/nonexistent/socket", option, "x"]);
        assert!(aborts(&output), "{option}: {output:?}");
    }
}

fn bad_id(binary: &Path) {
    let long = "a".repeat(65);
    for id in ["", "a_b", "a/b", "a b", &long] {
        let output = run(binary, &["--api-sock", "/nonexistent/socket", "--id", id]);
        assert!(aborts(&output), "{id:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Invalid instance ID"), "{id:?}: {said}");
    }
}

fn other_failures(binary: &Path) {
    let failing: [&[&str]; 3] = [
        &["--api-sock", "/nonexistent/socket"],
        &["--log-path", "/nonexistent/log"],
        &["--metrics-path", "/nonexistent/metrics"],
    ];
    for args in failing {
        assert_eq!(code(binary, args), Some(1), "{args:?}");
    }
}

fn bad_config_file(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let path = path.to_str().expect("a temporary path is UTF-8");
    let args = ["--no-api", "--config-file", path];
    assert!(aborts(&run(binary, &args)));
    for text in [
        "",
        "{",
        "{}",
        r#"{"drives":[]}"#,
        r#"{"drives":[],"boot-source":{}}"#,
        r#"{"drives":[],"boot-source":{"kernel_image_path":"/nonexistent"}}"#,
        r#"{"drives":[],"boot-source":{"kernel_image_path":"/dev/null"},"machine-config":{"vcpu_count":0,"mem_size_mib":1}}"#,
    ] {
        std::fs::write(path, text).unwrap();
        assert_eq!(code(binary, &args), Some(1), "{text}");
    }
}

fn socket_must_be_new(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Vmm::start(binary, directory.path(), &[]);
    let mut second = Vmm::start_unready(binary, directory.path(), &["--api-sock", SOCKET]);
    assert_eq!(second.wait().code(), Some(1));
    assert_eq!(first.state(), "Not started");
    first.signal(Signal::TERM);
    first.wait();
    assert!(directory.path().join(SOCKET).exists());
}

fn jailer_options(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let args = [
        "--start-time-us",
        "1700000000000000",
        "--start-time-cpu-us",
        "1000",
        "--parent-cpu-time-us",
        "1000",
        "--no-seccomp",
    ];
    let vmm = Vmm::start(binary, directory.path(), &args);
    assert_eq!(vmm.state(), "Not started");
}

fn signals(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let mut vmm = Vmm::start(binary, directory.path(), &[]);
    vmm.signal(Signal::HUP);
    assert_eq!(vmm.wait().code(), Some(156));
    std::fs::remove_file(directory.path().join(SOCKET)).unwrap();
    let mut vmm = Vmm::start(binary, directory.path(), &[]);
    vmm.signal(Signal::TERM);
    assert_eq!(vmm.wait().signal(), Some(Signal::TERM.as_raw()));
}
