//! The part of a container's `config.json` that concerns mounts (OCI runtime specification, "Mounts").
//!
//! The document stays JSON: what this module does not know reaches the guest unchanged.

use serde_json::{Map, Value, json};

use crate::VolumeError;

/// Annotation that accepts copies for mounts through which the container wants to write to the host:
/// `true` for all of them, or a comma-separated list of their destinations. What the container writes
/// there stays in the VM.
pub const COPY_ANNOTATION: &str = "aws.firecracker.volume.copy";

/// A `config.json` whose mounts can be looked at and replaced.
#[derive(Debug)]
pub(crate) struct Spec {
    document: Map<String, Value>,
}

/// One element of `mounts`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is in the container.
    pub(crate) destination: String,
    /// The filesystem's type; may be empty for a bind mount.
    pub(crate) fstype: String,
    /// A path for bind mounts and images, a mere name for others.
    pub(crate) source: String,
    /// Options as for mount(8), one per element.
    pub(crate) options: Vec<String>,
}

impl Mount {
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|given| given == option)
    }

    /// A bind mount: an option says so whatever the type is, as it does for OCI runtimes.
    pub(crate) fn is_bind(&self) -> bool {
        self.fstype == "bind" || self.has("bind") || self.has("rbind")
    }

    /// Of `ro` and `rw` the last one counts, as for mount(8); the default is writable.
    pub(crate) fn is_read_only(&self) -> bool {
        let last = self
            .options
            .iter()
            .rev()
            .find(|option| matches!(option.as_str(), "ro" | "rw" | "rro"));
        last.is_some_and(|option| option != "rw")
    }
}

impl Spec {
    pub(crate) fn parse(json: &[u8]) -> Result<Spec, VolumeError> {
        let document = serde_json::from_slice(json).map_err(VolumeError::Json)?;
        Ok(Spec { document })
    }

    /// All mounts, in order.
    pub(crate) fn mounts(&self) -> Result<Vec<Mount>, VolumeError> {
        let list = match self.document.get("mounts") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(_) => return Err(VolumeError::Malformed("mounts is no list".to_owned())),
        };
        list.iter()
            .enumerate()
            .map(|(number, mount)| read_mount(number, mount))
            .collect()
    }

    /// Which writable binds may be copied.
    pub(crate) fn accepted_copies(&self) -> AcceptedCopies {
        let annotations = self.document.get("annotations");
        let value = annotations.and_then(|all| all.get(COPY_ANNOTATION));
        match value.and_then(Value::as_str).map(str::trim) {
            None | Some("" | "false") => AcceptedCopies::Some(Vec::new()),
            Some("true") => AcceptedCopies::All,
            Some(list) => {
                let list = list.split(',').map(|one| one.trim().to_owned());
                AcceptedCopies::Some(list.filter(|one| !one.is_empty()).collect())
            }
        }
    }

    /// Makes a mount a bind mount of `source`, or whatever else `mount` says; its other fields stay.
    pub(crate) fn replace(&mut self, number: usize, mount: &Mount) {
        let list = self
            .document
            .get_mut("mounts")
            .and_then(Value::as_array_mut);
        if let Some(Value::Object(fields)) = list.and_then(|list| list.get_mut(number)) {
            fields.insert("type".into(), json!(mount.fstype));
            fields.insert("source".into(), json!(mount.source));
            fields.insert("options".into(), json!(mount.options));
        }
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        // A map with string keys always has a JSON form.
        serde_json::to_vec(&self.document).unwrap_or_default()
    }
}

fn read_mount(number: usize, mount: &Value) -> Result<Mount, VolumeError> {
    let malformed = |what: &str| VolumeError::Malformed(format!("mounts[{number}]{what}"));
    let fields = mount
        .as_object()
        .ok_or_else(|| malformed(" is no object"))?;
    let text = |key: &str| match fields.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(malformed(&format!(".{key} is no text"))),
    };
    let options = match fields.get("options") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list
            .iter()
            .map(|option| option.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| malformed(".options holds something other than text"))?,
        Some(_) => return Err(malformed(".options is no list")),
    };
    let destination = text("destination")?;
    if destination.is_empty() {
        return Err(malformed(" has no destination"));
    }
    Ok(Mount {
        destination,
        fstype: text("type")?,
        source: text("source")?,
        options,
    })
}

/// What [`COPY_ANNOTATION`] says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum AcceptedCopies {
    /// Every writable bind.
    All,
    /// Those at these destinations.
    Some(Vec<String>),
}

impl AcceptedCopies {
    pub(crate) fn accepts(&self, destination: &str) -> bool {
        match self {
            AcceptedCopies::All => true,
            AcceptedCopies::Some(list) => list.iter().any(|one| one == destination),
        }
    }

    /// A destination in the list at which nothing is mounted.
    pub(crate) fn unknown<'a>(&'a self, mounts: &[Mount]) -> Option<&'a str> {
        let AcceptedCopies::Some(list) = self else {
            return None;
        };
        list.iter()
            .find(|one| !mounts.iter().any(|mount| mount.destination == **one))
            .map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_change() {
        let json = br#"{"root":{"path":"rootfs"},"mounts":[{"destination":"/a","type":"bind","source":"/x",
            "options":["rbind","ro"],"uidMappings":[]},{"destination":"/proc","type":"proc"}]}"#;
        let mut spec = Spec::parse(json).unwrap();
        let mut mounts = spec.mounts().unwrap();
        assert_eq!(mounts.len(), 2);
        mounts[0].source = "/y".into();
        spec.replace(0, &mounts[0]);
        let again: Value = serde_json::from_slice(&spec.to_json()).unwrap();
        let expected = json!({"root":{"path":"rootfs"},"mounts":[{"destination":"/a","type":"bind","source":"/y",
            "options":["rbind","ro"],"uidMappings":[]},{"destination":"/proc","type":"proc"}]});
        assert_eq!(again, expected);
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (json, name) in [
            (r#"{"mounts":3}"#, "mounts is no list"),
            (r#"{"mounts":[3]}"#, "mounts[0] is no object"),
            (
                r#"{"mounts":[{"type":"bind"}]}"#,
                "mounts[0] has no destination",
            ),
            (
                r#"{"mounts":[{"destination":"/a","source":1}]}"#,
                "mounts[0].source",
            ),
            (
                r#"{"mounts":[{"destination":"/a","options":"ro"}]}"#,
                "mounts[0].options",
            ),
            (
                r#"{"mounts":[{"destination":"/a","options":[1]}]}"#,
                "mounts[0].options",
            ),
        ] {
            let error = Spec::parse(json.as_bytes()).unwrap().mounts().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert!(matches!(Spec::parse(b"[]"), Err(VolumeError::Json(_))));
        assert_eq!(Spec::parse(b"{}").unwrap().mounts().unwrap(), []);
    }

    #[test]
    fn the_last_of_ro_and_rw_counts() {
        let read_only = |options: &[&str]| {
            let options = options.iter().map(|o| (*o).to_owned()).collect();
            Mount {
                options,
                ..Mount::default()
            }
            .is_read_only()
        };
        assert!(!read_only(&[]) && !read_only(&["ro", "rw"]));
        assert!(read_only(&["rw", "nosuid", "ro"]) && read_only(&["rbind", "rro"]));
    }

    #[test]
    fn copies_are_accepted_for_all_or_by_name() {
        let accepted = |value: &str| {
            let json = json!({"annotations": {COPY_ANNOTATION: value}}).to_string();
            Spec::parse(json.as_bytes()).unwrap().accepted_copies()
        };
        assert_eq!(accepted("true"), AcceptedCopies::All);
        assert!(!accepted("false").accepts("/a") && !accepted("").accepts(""));
        let list = accepted("/a, /b");
        assert!(list.accepts("/a") && list.accepts("/b") && !list.accepts("/c"));
        let mounts = [Mount {
            destination: "/a".into(),
            ..Mount::default()
        }];
        assert_eq!(list.unknown(&mounts), Some("/b"));
    }
}
