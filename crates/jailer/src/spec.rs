//! The container's configuration (OCI runtime specification, `config.json`): the administrator's template with
//! what a jail must have written over it. Everything else in the template is kept.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::netns::{self, NetnsError};
use crate::{User, settings_file};

/// What the jail decides.
#[derive(Debug)]
pub(crate) struct Overrides<'a> {
    /// The VMM's command line.
    pub(crate) args: &'a [String],
    /// Further environment, `NAME=value`.
    pub(crate) env: &'a [String],
    /// Who it runs as.
    pub(crate) user: User,
    /// The cgroup, the same path in each hierarchy.
    pub(crate) cgroups_path: &'a str,
    /// Its network namespace; `None` for what the template says, or else a new one without any network.
    pub(crate) net_ns: Option<&'a Path>,
    /// Its processors; empty for all.
    pub(crate) cpus: &'a str,
    /// Its memory nodes; empty for all.
    pub(crate) mems: &'a str,
    /// Directory on the host whose later mounts the VMM shall see, at [`DRIVES`].
    pub(crate) drives: &'a Path,
    /// Files that it sees at their own path, for reading and executing.
    pub(crate) read_only: &'a [PathBuf],
    /// Character devices that it may read and write, besides the template's.
    pub(crate) devices: &'a [Device],
}

/// A character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// Where the VMM sees what is exposed to it later.
pub(crate) const DRIVES: &str = "/drives";

/// Devices that every OCI runtime makes (the specification's "default devices").
const DEFAULT_DEVICES: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
];

/// Why a template is none. Each says where it is: `jailer.runc_config_path`.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It cannot be read.
    #[error("Cannot read the jail's template {} (configuration key jailer.runc_config_path)", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no JSON.
    #[error("The jail's template {} is no JSON (configuration key jailer.runc_config_path)", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A part is missing, or is of another type.
    #[error(
        "The jail's template {} lacks `{key}`, which must be {expected} (configuration key jailer.runc_config_path)",
        path.display()
    )]
    Lacks {
        /// The file.
        path: PathBuf,
        /// The key, from the top, joined by dots.
        key: &'static str,
        /// What has to be there.
        expected: &'static str,
    },
    /// It names a user, while the request does.
    #[error(
        "The jail's template {} sets process.user to {uid}:{gid}: leave it out, the user comes from each VM's \
         JailerConfig (configuration key jailer.runc_config_path)",
        path.display()
    )]
    User {
        /// The file.
        path: PathBuf,
        /// Its user.
        uid: u64,
        /// Its group.
        gid: u64,
    },
    /// It names a network namespace that is none.
    #[error(
        "The jail's template {} has no usable `path` of the network in `linux.namespaces` (configuration key \
         jailer.runc_config_path)",
        path.display()
    )]
    Network {
        /// The file.
        path: PathBuf,
        /// Why.
        source: NetnsError,
    },
}

/// A template that a jail can be made from.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    path: PathBuf,
    document: Map<String, Value>,
}

impl Template {
    /// Reads and checks the template.
    pub(crate) fn read(path: &Path) -> Result<Self, TemplateError> {
        let text = settings_file::read(path).map_err(|source| TemplateError::Read {
            path: path.to_owned(),
            source,
        })?;
        let document = serde_json::from_slice(&text).map_err(|source| TemplateError::Json {
            path: path.to_owned(),
            source,
        })?;
        let mut template = Self {
            path: path.to_owned(),
            document,
        };
        template.check()?;
        Ok(template)
    }

    fn check(&mut self) -> Result<(), TemplateError> {
        let path = self.path.clone();
        self.object("linux")?;
        let user = self.object("process")?.get("user").cloned();
        let id = |name, key| {
            let id = user.as_ref().and_then(|user| user.get(name));
            match id {
                None | Some(Value::Null) => Ok(0),
                Some(id) => id.as_u64().ok_or_else(|| self.lacks(key, "0 or missing")),
            }
        };
        let (uid, gid) = (
            id("uid", "process.user.uid")?,
            id("gid", "process.user.gid")?,
        );
        if uid != 0 || gid != 0 {
            return Err(TemplateError::User { path, uid, gid });
        }
        // What is written over below has to be of the right type now, before anything is made.
        self.apply(&Overrides {
            args: &[],
            env: &[],
            user: User::new(1, 1).map_err(|_| self.lacks("process.user", "an object"))?,
            cgroups_path: "",
            net_ns: None,
            cpus: "",
            mems: "",
            drives: Path::new(""),
            read_only: &[],
            devices: &[],
        })
        .map(drop)
    }

    /// The configuration of a VM's container.
    pub(crate) fn apply(&self, overrides: &Overrides<'_>) -> Result<Value, TemplateError> {
        let mut this = self.clone();
        let process = this.object("process")?;
        process.insert("args".into(), json!(overrides.args));
        process.insert("cwd".into(), json!("/"));
        process.insert("terminal".into(), json!(false));
        let user = entry(process, "user", json!({}));
        let user = user.and_then(Value::as_object_mut);
        if let Some(user) = user {
            user.insert("uid".into(), json!(overrides.user.uid()));
            user.insert("gid".into(), json!(overrides.user.gid()));
        } else {
            return Err(this.lacks("process.user", "an object"));
        }
        let env = entry(this.object("process")?, "env", json!([])).and_then(Value::as_array_mut);
        match env {
            Some(env) => env.extend(overrides.env.iter().map(|variable| json!(variable))),
            None => return Err(this.lacks("process.env", "a list")),
        }
        this.document.insert(
            "root".into(),
            json!({ "path": crate::layout::ROOT, "readonly": false }),
        );
        this.mounts(overrides)?;
        this.linux(overrides)?;
        Ok(Value::Object(this.document))
    }

    /// Checks the network namespace that the template names, if any.
    pub(crate) fn check_network(&self) -> Result<(), TemplateError> {
        let namespaces = self.document.get("linux").map(|it| &it["namespaces"]);
        let namespaces = namespaces.and_then(Value::as_array).into_iter().flatten();
        let paths = namespaces
            .filter(|it| it["type"] == "network")
            .filter_map(|it| it["path"].as_str())
            .filter(|path| !path.is_empty());
        for path in paths {
            netns::check(Path::new(path)).map_err(|source| TemplateError::Network {
                path: self.path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Whether the template itself mounts something at `path` or at a directory above.
    pub(crate) fn mounts_at(&self, path: &Path) -> bool {
        let mounts = self.document.get("mounts").and_then(Value::as_array);
        mounts.into_iter().flatten().any(|mount| {
            let destination = mount["destination"].as_str();
            destination.is_some_and(|destination| path.starts_with(destination))
        })
    }

    fn mounts(&mut self, overrides: &Overrides<'_>) -> Result<(), TemplateError> {
        let mounts = entry(&mut self.document, "mounts", json!([])).and_then(Value::as_array_mut);
        let Some(mounts) = mounts else {
            return Err(self.lacks("mounts", "a list"));
        };
        mounts.push(json!({
            "destination": DRIVES, "type": "bind", "source": overrides.drives,
            // No nodev: block devices are nodes in it.
            "options": ["rbind", "rslave", "ro", "nosuid", "noexec"],
        }));
        mounts.extend(overrides.read_only.iter().map(|path| {
            json!({
                "destination": path, "type": "bind", "source": path,
                "options": ["bind", "ro", "nosuid", "nodev"],
            })
        }));
        Ok(())
    }

    fn linux(&mut self, overrides: &Overrides<'_>) -> Result<(), TemplateError> {
        let linux = self.object("linux")?;
        linux.insert("cgroupsPath".into(), json!(overrides.cgroups_path));
        // Otherwise nothing that is mounted on the host later would appear.
        linux.insert("rootfsPropagation".into(), json!("rslave"));
        let resources = entry(linux, "resources", json!({})).and_then(Value::as_object_mut);
        let Some(resources) = resources else {
            return Err(self.lacks("linux.resources", "an object"));
        };
        let Some(cpu) = entry(resources, "cpu", json!({})).and_then(Value::as_object_mut) else {
            return Err(self.lacks("linux.resources.cpu", "an object"));
        };
        cpu.insert("cpus".into(), json!(overrides.cpus));
        cpu.insert("mems".into(), json!(overrides.mems));
        self.devices(overrides)?;
        self.namespaces(overrides)
    }

    fn devices(&mut self, overrides: &Overrides<'_>) -> Result<(), TemplateError> {
        let linux = self.object("linux")?;
        let Some(nodes) = entry(linux, "devices", json!([])).and_then(Value::as_array_mut) else {
            return Err(self.lacks("linux.devices", "a list"));
        };
        let there = |nodes: &[Value], path: &Path| {
            DEFAULT_DEVICES.iter().any(|it| path == Path::new(it))
                || nodes
                    .iter()
                    .any(|node| node["path"].as_str().map(Path::new) == Some(path))
        };
        // Drives are block devices, made one by one: no node, no drive. The VMM itself cannot make nodes.
        let mut rules = vec![json!({ "allow": true, "type": "b", "access": "rw" })];
        for device in overrides.devices {
            if there(nodes, &device.path) {
                continue;
            }
            let (major, minor) = (device.major, device.minor);
            nodes.push(json!({
                "path": device.path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666,
            }));
            rules.push(json!({
                "allow": true, "type": "c", "major": major, "minor": minor, "access": "rw",
            }));
        }
        let resources = entry(linux, "resources", json!({})).and_then(Value::as_object_mut);
        let present = resources.and_then(|it| entry(it, "devices", json!([])));
        match present.and_then(Value::as_array_mut) {
            Some(present) => present.extend(rules),
            None => return Err(self.lacks("linux.resources.devices", "a list")),
        }
        Ok(())
    }

    /// The network is the request's, else the template's, else none. Without an entry it would be the host's, and so
    /// would be what the container mounts.
    fn namespaces(&mut self, overrides: &Overrides<'_>) -> Result<(), TemplateError> {
        let linux = self.object("linux")?;
        let namespaces = entry(linux, "namespaces", json!([])).and_then(Value::as_array_mut);
        let Some(namespaces) = namespaces else {
            return Err(self.lacks("linux.namespaces", "a list"));
        };
        for kind in ["network", "mount"] {
            if !namespaces.iter().any(|it| it["type"] == kind) {
                namespaces.push(json!({ "type": kind }));
            }
        }
        if let Some(path) = overrides.net_ns {
            let network = namespaces.iter_mut().filter(|it| it["type"] == "network");
            for entry in network.filter_map(Value::as_object_mut) {
                entry.insert("path".into(), json!(path));
            }
        }
        Ok(())
    }

    fn object(&mut self, key: &'static str) -> Result<&mut Map<String, Value>, TemplateError> {
        let missing = self.lacks(key, "an object");
        let value = self.document.get_mut(key).and_then(Value::as_object_mut);
        value.ok_or(missing)
    }

    fn lacks(&self, key: &'static str, expected: &'static str) -> TemplateError {
        TemplateError::Lacks {
            path: self.path.clone(),
            key,
            expected,
        }
    }
}

/// The value of `key`; `default` takes the place of none and of null, which Go programs write for it.
fn entry<'a>(
    object: &'a mut Map<String, Value>,
    key: &str,
    default: Value,
) -> Option<&'a mut Value> {
    let value = object.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = default;
    }
    Some(value)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
