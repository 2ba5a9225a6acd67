//! Snapshots as the overlayfs snapshotter makes them, and mounts that nobody else sees.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fc_rootfs::{ContainerFiles, Mount, Rootfs, Settings};
use fc_test_host::{in_namespace, names, sh};
use rustix::mount::{MountFlags, mount};

/// mount(2) with options as text.
pub fn mount_with(fstype: &str, source: &Path, target: &Path, flags: MountFlags, options: &str) {
    fs::create_dir_all(target).unwrap();
    let options = CString::new(options).unwrap();
    mount(source, target, fstype, flags, options.as_c_str()).unwrap();
}

/// Mounts an image file through a loop device.
pub fn mount_image(image: &Path, target: &Path, options: &str) {
    fs::create_dir_all(target).unwrap();
    let end = Command::new("mount")
        .args(["-n", "-o", &format!("loop,{options}")])
        .args([image, target])
        .output()
        .unwrap();
    assert!(
        end.status.success(),
        "{}",
        String::from_utf8_lossy(&end.stderr)
    );
}

/// A temporary directory with snapshots, a cache and a VM's directory.
pub struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    pub fn new() -> Host {
        let host = Host {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(host.path("vm")).unwrap();
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a shell script in the directory.
    pub fn sh(&self, script: &str) {
        sh(script, self.dir.path());
    }

    pub fn rootfs(&self) -> Rootfs {
        Rootfs::new(Settings::new(self.path("cache")))
    }

    pub fn files(&self, container: &str) -> ContainerFiles {
        ContainerFiles {
            disk: self.path(&format!("vm/{container}.disk")),
            disk_size: 1 << 30,
            image: self.path(&format!("vm/{container}.image")),
        }
    }

    /// Makes a layer on top of `below` (topmost first) the way an unpacked image's come
    /// to be: a shell script runs in a mounted overlay. Gives all layers, topmost first.
    pub fn layer(&self, name: &str, below: &[PathBuf], script: &str) -> Vec<PathBuf> {
        let [upper, work, merged] =
            ["fs", "work", "merged"].map(|dir| self.path(&format!("{name}/{dir}")));
        for dir in [&upper, &work, &merged] {
            fs::create_dir_all(dir).unwrap();
        }
        in_namespace(|| {
            let target = if below.is_empty() {
                &upper
            } else {
                let options = format!(
                    "lowerdir={},upperdir={},workdir={}",
                    joined(below),
                    upper.display(),
                    work.display()
                );
                mount_with(
                    "overlay",
                    Path::new("overlay"),
                    &merged,
                    MountFlags::empty(),
                    &options,
                );
                &merged
            };
            sh(script, target);
        });
        let mut layers = vec![upper];
        layers.extend_from_slice(below);
        layers
    }

    /// The active snapshot on top of `layers`, as containerd hands it to a shim.
    pub fn active(&self, name: &str, layers: &[PathBuf]) -> Mount {
        let [upper, work] = ["fs", "work"].map(|dir| self.path(&format!("{name}/{dir}")));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(&work).unwrap();
        Mount {
            fstype: "overlay".into(),
            source: "overlay".into(),
            target: String::new(),
            options: vec![
                "index=off".into(),
                format!("workdir={}", work.display()),
                format!("upperdir={}", upper.display()),
                format!("lowerdir={}", joined(layers)),
            ],
        }
    }

    /// Names in the cache's directory.
    pub fn cached(&self) -> Vec<String> {
        names(&self.path("cache"))
    }
}

fn joined(layers: &[PathBuf]) -> String {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| layer.to_str().unwrap().replace(':', "\\:"))
        .collect();
    layers.join(":")
}
