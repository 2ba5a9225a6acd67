//! `<binary>.jail.json`: what a VMM needs besides its own file.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::spec::{Device, Template};
use crate::{program, settings_file};

/// The file's content. Everything is optional, and null is as good as nothing; what is misspelt is refused, not left
/// out.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Needs {
    /// Files that it reads and executes, by absolute path; the same in the jail.
    #[serde(deserialize_with = "or_nothing")]
    pub(crate) read_only_paths: Vec<PathBuf>,
    /// Character devices that it reads and writes.
    #[serde(deserialize_with = "or_nothing")]
    devices: Vec<PathBuf>,
    /// Its environment.
    #[serde(deserialize_with = "or_nothing")]
    environment: std::collections::BTreeMap<String, String>,
}

/// Why the needs of a VMM are unknown or cannot be met.
#[derive(Debug, thiserror::Error)]
pub enum NeedsError {
    /// The file cannot be read.
    #[error("Cannot read {}, which lists what the VMM needs in a jail", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} does not list what a VMM needs in a jail", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A path in it cannot be shown.
    #[error("{} lists {}, which must be an absolute path without `..` to {expected}", path.display(), listed.display())]
    Listed {
        /// The file.
        path: PathBuf,
        /// The path in it.
        listed: PathBuf,
        /// What is expected there.
        expected: &'static str,
    },
    /// The program cannot be executed without a file that is not listed.
    #[error(
        "The VMM {} is linked dynamically: list its interpreter {} and its libraries (`ldd` shows them) as \
         read_only_paths in {}",
        program.display(), interpreter.display(), path.display()
    )]
    Interpreter {
        /// The program.
        program: PathBuf,
        /// Its interpreter.
        interpreter: PathBuf,
        /// The list, which may not be there.
        path: PathBuf,
    },
}

impl Needs {
    /// What the file beside the program says; without one, nothing is needed. A program that needs more than that
    /// and `template` show is refused.
    pub(crate) fn of(program: &Path, template: &Template) -> Result<Self, NeedsError> {
        let mut name = program.as_os_str().to_owned();
        name.push(".jail.json");
        let path = PathBuf::from(name);
        let needs = Self::listed(&path)?;
        match program::interpreter(program) {
            Some(interpreter)
                if !needs.read_only_paths.contains(&interpreter)
                    && !template.mounts_at(&interpreter) =>
            {
                Err(NeedsError::Interpreter {
                    program: program.to_owned(),
                    interpreter,
                    path,
                })
            }
            _ => Ok(needs),
        }
    }

    fn listed(path: &Path) -> Result<Self, NeedsError> {
        let text = match settings_file::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(|source| NeedsError::Read {
                path: path.to_owned(),
                source,
            })?,
        };
        // serde would take a list for the fields in their order.
        let needs = serde_json::from_slice::<Map<String, Value>>(&text)
            .and_then(|_| serde_json::from_slice::<Self>(&text))
            .map_err(|source| NeedsError::Json {
                path: path.to_owned(),
                source,
            })?;
        for listed in &needs.read_only_paths {
            if !is_plain(listed) || !listed.is_file() {
                return Err(NeedsError::Listed {
                    path: path.to_owned(),
                    listed: listed.clone(),
                    expected: "a file of this host",
                });
            }
        }
        // One that this host does not have is the VMM's own to miss, when it needs it.
        let wrong = |path: &&PathBuf| !is_plain(path) || (path.exists() && device(path).is_none());
        if let Some(listed) = needs.devices.iter().find(wrong) {
            return Err(NeedsError::Listed {
                path: path.to_owned(),
                listed: listed.clone(),
                expected: "a character device of this host",
            });
        }
        Ok(needs)
    }

    pub(crate) fn devices(&self) -> Vec<Device> {
        self.devices
            .iter()
            .filter_map(|path| device(path))
            .collect()
    }

    pub(crate) fn environment(&self) -> Vec<String> {
        let variables = self.environment.iter();
        variables
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

/// The value, or the default for null.
fn or_nothing<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part.as_os_str() == "..")
}

fn device(path: &Path) -> Option<Device> {
    let metadata = path.metadata().ok()?;
    let number = metadata.rdev();
    metadata.file_type().is_char_device().then(|| Device {
        path: path.to_owned(),
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template with mounts.
    fn template(dir: &Path, mounts: &str) -> Template {
        let path = dir.join("template.json");
        let text = format!(r#"{{"process": {{}}, "linux": {{}}, "mounts": [{mounts}]}}"#);
        std::fs::write(&path, text).unwrap();
        Template::read(&path).unwrap()
    }

    #[test]
    fn an_interpreter_has_to_be_shown() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        std::fs::write(&program, program::linked("/lib64/ld.so")).unwrap();
        let bare = template(dir.path(), "");
        let list = dir.path().join("vmm.jail.json");
        let refused = || Needs::of(&program, &bare).unwrap_err().to_string();
        for word in ["/lib64/ld.so", "vmm.jail.json", "linked dynamically"] {
            assert!(refused().contains(word), "{}", refused());
        }
        std::fs::write(&list, r#"{"read_only_paths": ["/etc/passwd"]}"#).unwrap();
        assert!(refused().contains("/lib64/ld.so"), "{}", refused());

        // By the template, or by the list.
        let around = template(dir.path(), r#"{"destination": "/lib64"}"#);
        Needs::of(&program, &around).unwrap();
        let beside = template(dir.path(), r#"{"destination": "/lib"}"#);
        Needs::of(&program, &beside).unwrap_err();
        std::fs::write(&program, program::linked("/etc/passwd")).unwrap();
        Needs::of(&program, &bare).unwrap();
    }

    #[test]
    fn what_is_listed_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        let list = dir.path().join("vmm.jail.json");
        let template = template(dir.path(), "");
        let of = |program: &Path| Needs::of(program, &template);
        assert_eq!(of(&program).unwrap(), Needs::default());
        let say = |text: &str| std::fs::write(&list, text).unwrap();
        say(
            r#"{"read_only_paths": ["/etc/passwd"], "devices": ["/dev/null"], "environment": {"A": "b"}}"#,
        );
        let needs = of(&program).unwrap();
        assert_eq!(needs.environment(), ["A=b"]);
        assert_eq!((needs.devices()[0].major, needs.devices()[0].minor), (1, 3));
        say(r#"{"devices": ["/dev/no-such-device"]}"#);
        assert_eq!(of(&program).unwrap().devices(), []);
        say(r#"{"read_only_paths": null, "devices": null, "environment": null}"#);
        assert_eq!(of(&program).unwrap(), Needs::default());
        for text in [
            "[]",
            r#"[["/etc/passwd"], [], {}]"#,
            "null",
            r#"{"read_only_path": ["/etc/passwd"]}"#,
            r#"{"read_only_paths": ["etc/passwd"]}"#,
            r#"{"read_only_paths": ["/etc/../etc/passwd"]}"#,
            r#"{"read_only_paths": ["/nonexistent"]}"#,
            r#"{"read_only_paths": ["/etc"]}"#,
            r#"{"devices": ["/etc/passwd"]}"#,
            r#"{"devices": ["dev/null"]}"#,
        ] {
            say(text);
            let error = of(&program).unwrap_err().to_string();
            assert!(error.contains("vmm.jail.json"), "{error}");
        }
    }
}
