//! A host with files to mount, and mounts that nobody else sees.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fc_test_host::{in_namespace, names, sh};
use fc_volume::{CopySettings, Prepared, Request, VolumeError, VolumeFiles, Volumes};
use serde_json::{Value, json};

pub const MIB: u64 = 1 << 20;

/// A temporary directory; its subdirectory `vm` is for the container's files.
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

    /// Runs a script in it.
    pub fn sh(&self, script: &str) -> String {
        sh(script, self.dir.path())
    }

    pub fn request(&self) -> Request {
        Request {
            guest_dir: "/container/c".into(),
            guest_paths: vec!["/data".into()],
            files: VolumeFiles {
                copies: self.path("vm/c.copies"),
                writable_copies: self.path("vm/c.writable"),
                writable_size: 64 * MIB,
            },
        }
    }

    /// Prepares the mounts, with room for 1 MiB of copies.
    pub async fn prepare(
        &self,
        mounts: &Value,
        annotation: Option<&str>,
    ) -> Result<Prepared, VolumeError> {
        let spec = spec(mounts, annotation);
        volumes().prepare(&spec, &self.request()).await
    }

    /// Names of the container's files.
    pub fn files(&self) -> Vec<String> {
        names(&self.path("vm"))
    }

    /// Runs a script with the `number`-th drive mounted as its working directory.
    pub fn in_drive(&self, prepared: &Prepared, number: usize, script: &str) -> String {
        let drive = &prepared.drives()[number];
        let target = self.path("mounted");
        fs::create_dir_all(&target).unwrap();
        let access = if drive.read_only { "ro" } else { "rw" };
        in_namespace(|| {
            let end = Command::new("mount")
                .args(["-n", "-t", &drive.fstype, "-o", &format!("loop,{access}")])
                .args([drive.file.path(), &target])
                .output()
                .unwrap();
            let complaint = String::from_utf8_lossy(&end.stderr);
            assert!(end.status.success(), "{complaint}");
            sh(script, &target)
        })
    }
}

pub fn volumes() -> Volumes {
    Volumes::new(CopySettings::new(MIB))
}

pub fn spec(mounts: &Value, annotation: Option<&str>) -> Vec<u8> {
    let mut spec = json!({"mounts": mounts});
    if let Some(value) = annotation {
        spec["annotations"] = json!({fc_volume::COPY_ANNOTATION: value});
    }
    spec.to_string().into_bytes()
}

/// The mounts that the guest gets.
pub fn guest_mounts(prepared: &Prepared) -> Value {
    let spec: Value = serde_json::from_slice(prepared.spec()).unwrap();
    spec["mounts"].clone()
}
