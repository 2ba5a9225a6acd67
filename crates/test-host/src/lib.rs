//! What tests need of the host they run on (root, programs, mounts of their own), and what they do there: run a
//! script, list a directory.
//!
//! A test asks first and returns when the host lacks something; each question prints `SKIPPED: ` and what it is.

use std::env;
use std::fs;
use std::io::Write;
use std::panic;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Whether root runs the test, which `activity` ("mounting") needs.
#[must_use]
pub fn has_root(activity: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIPPED: {activity} needs root");
    }
    root
}

/// Whether all programs are in `PATH`; each comes with the name of its Debian package.
#[must_use]
pub fn has_programs(programs: &[(&str, &str)]) -> bool {
    let missing = missing(programs);
    if let Some((program, package)) = missing {
        println!("SKIPPED: {program} is missing; install {package}");
    }
    missing.is_none()
}

fn missing<'a>(programs: &[(&'a str, &'a str)]) -> Option<(&'a str, &'a str)> {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = |program: &str| env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let mut programs = programs.iter().copied();
    programs.find(|(program, _)| !installed(program))
}

/// Whether images of file systems, EROFS and ext4, can be made and mounted.
#[must_use]
pub fn can_mount_images() -> bool {
    has_root("mounting")
        && has_programs(&[("mkfs.erofs", "erofs-utils"), ("mkfs.ext4", "e2fsprogs")])
}

/// Runs `work` on a thread with mounts of its own, which are gone afterwards. Needs root.
///
/// # Panics
/// When `work` does, or the mounts cannot be had.
pub fn in_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: of what threads share, NEWNS takes away the mounts and the working directory only; file
            // descriptors stay shared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("mounts of the test's own");
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", private).expect("mounts that nobody else sees");
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// Runs a shell script in `dir`; gives what it prints.
///
/// # Panics
/// When a command of the script fails, with the script and what it complained about; when what it prints is not UTF-8.
pub fn sh(script: &str, dir: &Path) -> String {
    String::from_utf8(sh_bytes(script, dir)).expect("a script that prints text")
}

/// As [`sh`], of a script that prints more than text.
///
/// # Panics
/// When a command of the script fails, with the script and what it complained about.
pub fn sh_bytes(script: &str, dir: &Path) -> Vec<u8> {
    let end = Command::new("sh")
        .args(["-euc", script])
        .current_dir(dir)
        .output()
        .expect("a shell");
    let complaint = String::from_utf8_lossy(&end.stderr);
    assert!(end.status.success(), "{script}: {complaint}");
    end.stdout
}

/// Writes a program (mode 0755), by another process: one that this process has open for writing cannot be executed,
/// and a process that another test is just starting has it open, too.
///
/// # Panics
/// When it cannot be written.
pub fn write_program(path: &Path, content: &str) {
    let mut shell = Command::new("sh")
        .args(["-euc", "rm -f \"$0\"; cat >\"$0\"; chmod 755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut stdin = shell.stdin.take().expect("piped");
    stdin.write_all(content.as_bytes()).expect("a reader");
    drop(stdin);
    assert!(
        shell.wait().expect("a shell").success(),
        "{}",
        path.display()
    );
}

/// The names in a directory, sorted.
///
/// # Panics
/// When it cannot be read, or a name is not UTF-8.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string())
        .collect::<Result<_, _>>()
        .expect("names that are UTF-8");
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_seen_inside_only() {
        if !has_root("mounting") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let inside = in_namespace(|| {
            sh("mount -n -t tmpfs none \"$PWD\"", dir.path());
            names(dir.path())
        });
        assert_eq!(inside, [""; 0]);
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn a_missing_program_is_noticed() {
        let (shell, none) = (("sh", "dash"), ("no such program", "none"));
        assert_eq!(missing(&[shell]), None);
        assert_eq!(missing(&[shell, none]), Some(none));
    }

    #[test]
    fn a_program_that_was_just_written_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a program");
        for said in ["one", "two"] {
            write_program(&path, &format!("#!/bin/sh\necho {said}\n"));
            let end = Command::new(&path).output().unwrap();
            assert_eq!(end.stdout, format!("{said}\n").as_bytes());
        }
    }

    #[test]
    fn a_script_ends_at_its_first_failure() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(sh("echo said", dir.path()), "said\n");
        let failed = panic::catch_unwind(|| sh("echo why >&2; false; touch more", dir.path()));
        let said = failed.unwrap_err().downcast::<String>().unwrap();
        assert!(said.ends_with(": why\n"), "{said}");
        assert_eq!(names(dir.path()), [""; 0]);
    }
}
