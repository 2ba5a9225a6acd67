//! Makes a spec that was written for the host fit the guest.
//!
//! The spec travels as JSON and stays JSON: what this module does not know reaches the OCI runtime
//! unchanged.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Why a spec cannot be used in the guest.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not JSON.
    #[error("The container's spec is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// JSON of the wrong shape.
    #[error("The container's spec has no object {0:?}")]
    Missing(&'static str),
    /// Hooks are programs of the host.
    #[error(
        "The container's spec has {0} hooks: hooks are programs on the host and cannot run inside the VM"
    )]
    Hooks(String),
    /// A bind mount of something that only the host has.
    #[error(
        "Mount at {destination} binds {bind_source}, which does not exist inside the VM: files and directories of the host cannot be mounted into the container"
    )]
    HostMount {
        /// Where in the container.
        destination: String,
        /// What would have been mounted.
        bind_source: String,
    },
}

/// The spec's version that the OCI runtime sees.
const OCI_VERSION: &str = "1.0.2";

/// A container's spec, fit for the guest.
#[derive(Debug)]
pub struct Spec {
    value: Map<String, Value>,
}

impl Spec {
    /// Reads the spec of a container that gets the cgroup `cgroup`, whose bundle is `bundle`, and
    /// adapts it:
    ///
    /// - the rootfs is `rootfs` in the bundle;
    /// - the spec's version becomes one that every OCI runtime knows: crun before 1.9 refuses the 1.1
    ///   and 1.2 of newer containerds, and runtimes ignore the fields that they do not know;
    /// - namespaces are new ones: a path names one of the host's;
    /// - security modules' labels and Intel's resource control, which are the host's, are dropped;
    /// - hooks, and bind mounts whose source the guest does not have, are refused.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn adapt(json: &[u8], cgroup: &str, bundle: &Path) -> Result<Self, SpecError> {
        let mut value: Map<String, Value> =
            serde_json::from_slice(json).map_err(SpecError::Json)?;
        refuse_hooks(&value)?;
        refuse_host_mounts(&value, bundle)?;
        value.insert("ociVersion".into(), json!(OCI_VERSION));
        object(&mut value, "root")?.insert("path".into(), json!("rootfs"));
        adapt_process(object(&mut value, "process")?);
        let linux = object(&mut value, "linux")?;
        linux.insert("cgroupsPath".into(), json!(cgroup));
        linux.remove("mountLabel");
        linux.remove("intelRdt");
        for namespace in namespaces(linux) {
            namespace.remove("path");
        }
        Ok(Self { value })
    }

    /// Whether the container's processes die with its init: they do in a pid namespace of their own.
    #[must_use]
    pub fn has_pid_namespace(&self) -> bool {
        let namespaces = self.value.get("linux").and_then(|l| l.get("namespaces"));
        namespaces
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|ns| ns["type"] == "pid"))
    }

    /// The user to look up in the rootfs (`process.user.username`), which is how a shim that
    /// cannot see the rootfs passes it on.
    #[must_use]
    pub fn user_name(&self) -> &str {
        let user = self.value.get("process").and_then(|p| p.get("user"));
        user.and_then(|u| u["username"].as_str()).unwrap_or("")
    }

    /// Sets the ids that the user was resolved to.
    ///
    /// # Errors
    /// When the spec has no process.
    pub fn set_user(&mut self, uid: u32, gid: u32, groups: &[u32]) -> Result<(), SpecError> {
        let process = object(&mut self.value, "process")?;
        process.insert(
            "user".into(),
            json!({ "uid": uid, "gid": gid, "additionalGids": groups }),
        );
        Ok(())
    }

    /// Adds supplementary groups to the user's.
    ///
    /// # Errors
    /// When the spec has no process.
    pub fn add_groups(&mut self, groups: &[u32]) -> Result<(), SpecError> {
        let process = object(&mut self.value, "process")?;
        let user = process.entry("user").or_insert_with(|| json!({}));
        let mut all: Vec<u64> = user["additionalGids"]
            .as_array()
            .map(|list| list.iter().filter_map(Value::as_u64).collect())
            .unwrap_or_default();
        all.extend(groups.iter().map(|gid| u64::from(*gid)));
        all.sort_unstable();
        all.dedup();
        user["additionalGids"] = json!(all);
        Ok(())
    }

    /// The spec as JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // A map with string keys always has a JSON form.
        serde_json::to_vec(&self.value).unwrap_or_default()
    }
}

/// Makes the description of a further process (exec), an OCI `Process`, fit the guest.
///
/// # Errors
/// When it is not a JSON object.
pub fn adapt_exec(json: &[u8]) -> Result<Vec<u8>, SpecError> {
    let mut process: Map<String, Value> = serde_json::from_slice(json).map_err(SpecError::Json)?;
    adapt_process(&mut process);
    serde_json::to_vec(&process).map_err(SpecError::Json)
}

fn adapt_process(process: &mut Map<String, Value>) {
    process.remove("apparmorProfile");
    process.remove("selinuxLabel");
}

fn object<'a>(
    value: &'a mut Map<String, Value>,
    key: &'static str,
) -> Result<&'a mut Map<String, Value>, SpecError> {
    value
        .get_mut(key)
        .and_then(Value::as_object_mut)
        .ok_or(SpecError::Missing(key))
}

fn namespaces(linux: &mut Map<String, Value>) -> impl Iterator<Item = &mut Map<String, Value>> {
    linux
        .get_mut("namespaces")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

fn refuse_hooks(spec: &Map<String, Value>) -> Result<(), SpecError> {
    let hooks = spec.get("hooks").and_then(Value::as_object);
    let kinds: Vec<&str> = hooks
        .into_iter()
        .flatten()
        .filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty()))
        .map(|(kind, _)| kind.as_str())
        .collect();
    if kinds.is_empty() {
        return Ok(());
    }
    Err(SpecError::Hooks(kinds.join(", ")))
}

fn refuse_host_mounts(spec: &Map<String, Value>, bundle: &Path) -> Result<(), SpecError> {
    let mounts = spec.get("mounts").and_then(Value::as_array);
    for mount in mounts.into_iter().flatten() {
        let text = |key: &str| mount[key].as_str().unwrap_or_default();
        let source = text("source");
        // What the guest has may be mounted: the caller may have put it there with a drive mount.
        if is_bind(mount) && !bundle.join(source).exists() {
            return Err(SpecError::HostMount {
                destination: text("destination").to_owned(),
                bind_source: source.to_owned(),
            });
        }
    }
    Ok(())
}

fn is_bind(mount: &Value) -> bool {
    let options = mount["options"].as_array();
    mount["type"] == "bind"
        || options.is_some_and(|list| list.iter().any(|o| o == "bind" || o == "rbind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapt(spec: Value) -> Result<Value, SpecError> {
        let spec = Spec::adapt(
            spec.to_string().as_bytes(),
            "/containers/c1",
            Path::new("/bundle"),
        )?;
        Ok(serde_json::from_slice(&spec.to_json()).unwrap())
    }

    #[test]
    fn the_version_is_one_that_old_runtimes_know() {
        let mut spec = minimal();
        spec["ociVersion"] = json!("1.2.0");
        assert_eq!(adapt(spec).unwrap()["ociVersion"], "1.0.2");
    }

    fn minimal() -> Value {
        json!({
            "root": { "path": "/host/rootfs", "readonly": true },
            "process": { "args": ["sh"], "apparmorProfile": "x", "selinuxLabel": "y" },
            "linux": {
                "cgroupsPath": "system.slice:containerd:c1",
                "mountLabel": "z",
                "namespaces": [{ "type": "pid" }, { "type": "network", "path": "/var/run/netns/a" }],
                "maskedPaths": ["/proc/kcore"],
            },
            "unknown": { "kept": 1 },
        })
    }

    #[test]
    fn what_belongs_to_the_host_is_replaced_and_the_rest_kept() {
        let spec = adapt(minimal()).unwrap();
        assert_eq!(spec["root"], json!({ "path": "rootfs", "readonly": true }));
        assert_eq!(spec["process"], json!({ "args": ["sh"] }));
        assert_eq!(spec["linux"]["cgroupsPath"], "/containers/c1");
        assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/kcore"]));
        assert_eq!(spec["linux"].get("mountLabel"), None);
        let namespaces = json!([{ "type": "pid" }, { "type": "network" }]);
        assert_eq!(spec["linux"]["namespaces"], namespaces);
        assert_eq!(spec["unknown"], json!({ "kept": 1 }));
    }

    #[test]
    fn hooks_are_refused_by_name_unless_empty() {
        let mut spec = minimal();
        spec["hooks"] = json!({ "prestart": [] });
        assert!(adapt(spec.clone()).is_ok());
        spec["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }] });
        let error = adapt(spec).unwrap_err().to_string();
        assert!(error.contains("createRuntime"), "{error}");
    }

    #[test]
    fn bind_mounts_of_what_the_guest_lacks_are_refused_by_name() {
        let mut spec = minimal();
        spec["mounts"] = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/a", "type": "bind", "source": "/dev/null", "options": ["rbind"] },
        ]);
        assert!(adapt(spec.clone()).is_ok());
        spec["mounts"] = json!([
            { "destination": "/etc/hosts", "type": "none", "source": "/no/hosts", "options": ["rbind"] },
        ]);
        let error = adapt(spec).unwrap_err().to_string();
        assert!(
            error.contains("/etc/hosts") && error.contains("/no/hosts"),
            "{error}"
        );
    }

    #[test]
    fn a_spec_of_the_wrong_shape_is_refused() {
        assert!(matches!(adapt(json!([])), Err(SpecError::Json(_))));
        assert!(matches!(adapt(json!({})), Err(SpecError::Missing("root"))));
    }

    #[test]
    fn the_user_is_replaced_or_gets_groups() {
        let mut spec = Spec::adapt(
            minimal().to_string().as_bytes(),
            "/containers/c1",
            Path::new("/bundle"),
        )
        .unwrap();
        assert_eq!(spec.user_name(), "");
        spec.set_user(5, 6, &[7]).unwrap();
        spec.add_groups(&[9, 7]).unwrap();
        let value: Value = serde_json::from_slice(&spec.to_json()).unwrap();
        let expected = json!({ "uid": 5, "gid": 6, "additionalGids": [7, 9] });
        assert_eq!(value["process"]["user"], expected);
        assert!(spec.has_pid_namespace());
    }
}
