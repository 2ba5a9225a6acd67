//! containerd, and whether it finds the runtime.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::net::sockopt::socket_peercred;

use super::Finding;

/// What containerd looks for when a container's runtime is `aws.firecracker`.
const SHIM: &str = "containerd-shim-aws-firecracker";
const CHECK: &str = "containerd";
const RUNTIME: &str = "runtime";
/// The oldest containerd that the runtime is tested with, as major and minor.
const OLDEST: (u32, u32) = (1, 6);

pub(super) fn check(address: &str) -> Vec<Finding> {
    let process = match UnixStream::connect(address).map(|socket| socket_peercred(&socket)) {
        Ok(Ok(credentials)) => Process(credentials.pid.as_raw_nonzero().get()),
        Ok(Err(error)) => return vec![not_there(address, &error.into())],
        Err(error) => return vec![not_there(address, &error)],
    };
    vec![version(address, &process), runtime(&process)]
}

fn not_there(address: &str, error: &std::io::Error) -> Finding {
    Finding::problem(
        CHECK,
        format!("Nobody answers at {address}: {error}"),
        "start containerd, or say where it is with --containerd-address",
    )
}

fn version(address: &str, process: &Process) -> Finding {
    let Some(exe) = process.exe() else {
        return Finding::note(
            CHECK,
            format!("It answers at {address}; its version is not known"),
            "run as root to see more",
        );
    };
    let output = Command::new(&exe).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let number = text.as_ref().ok().and_then(|text| {
        text.split_whitespace().find(|word| {
            word.trim_start_matches('v')
                .starts_with(|c: char| c.is_ascii_digit())
        })
    });
    match number {
        Some(number) if parse(number).is_some_and(|version| version < OLDEST) => Finding::problem(
            CHECK,
            format!("Version {number} at {address}"),
            format!("use {}.{} or newer", OLDEST.0, OLDEST.1),
        ),
        Some(number) => Finding::ok(CHECK, format!("Version {number} at {address}")),
        None => Finding::note(
            CHECK,
            format!("{} at {address} does not say its version", exe.display()),
            "use 1.6 or newer",
        ),
    }
}

/// Major and minor of `1.6.20~ds1` or `v2.1.0`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// containerd looks beside its own binary and on its own `PATH`, which is not ours.
fn runtime(process: &Process) -> Finding {
    let path = process.variable("PATH");
    let beside = process
        .exe()
        .and_then(|exe| exe.parent().map(Path::to_owned));
    let path_dirs = path.as_deref().map(std::env::split_paths);
    let dirs = path_dirs.into_iter().flatten().chain(beside);
    match find(dirs) {
        Some(shim) => Finding::ok(RUNTIME, format!("aws.firecracker is {}", shim.display())),
        None => Finding::problem(
            RUNTIME,
            format!("containerd does not find {SHIM} on its PATH"),
            format!(
                "`make install`, or put it into one of {}",
                path.unwrap_or_default().display()
            ),
        ),
    }
}

fn find(dirs: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    dirs.map(|dir| dir.join(SHIM)).find(|path| path.is_file())
}

struct Process(i32);

impl Process {
    fn exe(&self) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/exe", self.0)).ok()
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        let environment = std::fs::read(format!("/proc/{}/environ", self.0)).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let value = variables
            .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
        Some(OsStr::from_bytes(value).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::Stdio;

    #[test]
    fn versions() {
        assert_eq!(parse("1.6.20~ds1"), Some((1, 6)));
        assert_eq!(parse("v2.1.0"), Some((2, 1)));
        assert_eq!(parse("x"), None);
    }

    #[test]
    fn processes_tell_their_program_and_environment() {
        let mut child = Command::new("sh")
            .args(["-c", "echo; read -r line"])
            .env("DOCTOR", "looks")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        // A process has its environment a moment after it was started; one that speaks has it.
        let mut said = [0];
        let stdout = child.stdout.as_mut().expect("its output");
        stdout.read_exact(&mut said).expect("a line");
        let process = Process(i32::try_from(child.id()).expect("a process id"));
        let found = (process.variable("DOCTOR"), process.exe());
        child.kill().and_then(|()| child.wait()).expect("its end");
        assert_eq!(found.0.as_deref(), Some(OsStr::new("looks")));
        assert!(found.1.is_some());
    }

    #[test]
    fn the_shim_is_looked_for_in_every_directory() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let paths = || dirs.iter().map(|dir| dir.path().to_owned());
        assert_eq!(find(paths()), None);
        std::fs::write(dirs[1].path().join(SHIM), "").expect("a shim");
        assert_eq!(find(paths()), Some(dirs[1].path().join(SHIM)));
    }

    #[test]
    fn nobody_there() {
        let findings = check("/nonexistent/containerd.sock");
        assert!(findings[0].found.contains("Nobody answers"), "{findings:?}");
    }
}
