//! Private containerds with the test's images, and what there is in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fc_image_volume::{Containerd, Options};
use fc_test_host::{has_programs, has_root};
use fc_testbed::containerd;
use tempfile::TempDir;

use crate::images;

/// A running containerd.
pub struct Daemon {
    // Ends before its directory goes.
    containerd: containerd::Containerd,
    version: String,
    dir: TempDir,
}

/// The containerds at hand, each new; none, and why, if they cannot be used.
pub fn daemons() -> impl Iterator<Item = Daemon> {
    let mut prefixes = Vec::new();
    if has_root("containerd") {
        if has_programs(&[("containerd", "containerd")]) {
            prefixes.push(None);
        }
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build");
        for name in ["containerd-newer", "containerd-sid"] {
            let prefix = build.join(name).join("usr/bin");
            if prefix.join("containerd").exists() {
                prefixes.push(Some(prefix));
            }
        }
    }
    prefixes.into_iter().map(Daemon::start)
}

impl Daemon {
    fn start(prefix: Option<PathBuf>) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let program = prefix
            .as_ref()
            .map_or_else(|| "containerd".into(), |prefix| prefix.join("containerd"));
        let said = Command::new(program).arg("--version").output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let version = said.split_whitespace().nth(2).unwrap().to_owned();
        for name in ["mounts", "set"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let containerd = containerd::Containerd::start(containerd::Options {
            dir: dir.path().join("c"),
            prefix,
            bin_dir: dir.path().into(),
            runtime_config: dir.path().join("none.json"),
            extra_config: String::new(),
        })
        .unwrap();
        let daemon = Daemon {
            containerd,
            version,
            dir,
        };
        for (name, archive) in images::archives() {
            let tar = daemon.path("image.tar");
            fs::write(&tar, archive).unwrap();
            daemon.containerd.import(name, &tar).unwrap();
        }
        daemon
    }

    pub fn version(&self) -> &str {
        self.version.trim_start_matches('v')
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn connect(&self) -> Containerd {
        Containerd::connect(&self.containerd.socket(), "default")
            .await
            .unwrap()
    }

    /// Options with a directory of our own.
    pub fn options(&self) -> Options {
        Options::default().directory(self.path("mounts"))
    }

    /// Unpacks an image for a snapshotter; `ctr` does that for a container.
    pub fn unpack(&self, image: &str, snapshotter: &str) {
        let create = [
            "container",
            "create",
            "--snapshotter",
            snapshotter,
            image,
            "c",
        ];
        self.containerd.ctr_ok(&create).unwrap();
        self.containerd
            .ctr_ok(&["container", "delete", "c"])
            .unwrap();
    }

    /// Everything that using an image may leave: snapshots, leases, mounts, directories.
    pub fn state(&self, snapshotter: &str) -> String {
        let list = |args: &[&str]| {
            let text = self.containerd.ctr_ok(args).unwrap();
            let mut lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let mut all = list(&["snapshots", "--snapshotter", snapshotter, "ls"]);
        all.extend(list(&["leases", "ls"]));
        let mounts = self.path("mounts");
        let info = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let below = info
            .lines()
            .filter(|line| line.contains(mounts.to_str().unwrap()));
        all.extend(below.map(str::to_owned));
        let entries = fs::read_dir(mounts).unwrap();
        all.extend(entries.map(|entry| entry.unwrap().path().display().to_string()));
        all.join("\n")
    }

    /// Runs containerd's garbage collection to its end.
    pub fn collect_garbage(&self) {
        self.containerd
            .ctr_ok(&["leases", "create", "--id", "x"])
            .unwrap();
        self.containerd
            .ctr_ok(&["leases", "delete", "--sync", "x"])
            .unwrap();
    }
}
