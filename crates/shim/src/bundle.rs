//! A task's bundle: what its `config.json` says about the VM, and the files the shim adds.

use std::collections::HashMap;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use fc_config::Config;
use fc_rootfs::{DISK_SIZE_ANNOTATION, WRITE_BACK_ANNOTATION};
use serde::{Deserialize, Deserializer};

/// Annotation that names the VM a container runs in. Containers with the same value share it.
pub const VM_ID: &str = "aws.firecracker.vm.id";
/// Annotation with the least memory, in MiB, of a VM that `start` creates.
pub const VM_MEMORY_MIB: &str = "aws.firecracker.vm.memory_mib";
/// Annotation with the least number of virtual CPUs of a VM that `start` creates.
pub const VM_VCPUS: &str = "aws.firecracker.vm.vcpus";

/// The container's configuration.
pub const CONFIG: &str = "config.json";
/// FIFO from which containerd reads the shim's log.
pub const LOG: &str = "log";
/// File with the shim's address, read by containerd after its restart.
pub const ADDRESS: &str = "address";
/// File with the id of the VM, read by `delete`.
pub const VM_ID_FILE: &str = "vm-id";

const MIB: u64 = 1 << 20;
/// Sizes of a writable disk, as the configuration has them: from the least with a journal to 16 TiB.
const DISK_MIB: RangeInclusive<u32> = 8..=16 << 20;

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file could not be read or written.
    #[error("Cannot {action} {}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `config.json` is no container configuration.
    #[error("{} is not a container's configuration", path.display())]
    Malformed {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// An annotation is neither true nor false.
    #[error("Annotation {name} must be true or false, not {value:?}")]
    Flag {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// A container's writable disk cannot be of that size.
    #[error(
        "Annotation {DISK_SIZE_ANNOTATION} must be a whole number of MiB from {} to {}, not {value:?}",
        DISK_MIB.start(),
        DISK_MIB.end()
    )]
    DiskSize {
        /// The annotation's value.
        value: String,
    },
    /// An annotation is not the number it must be.
    #[error("Annotation {name} must be a whole number from 1 to {max}, not {value:?}", max = u32::MAX)]
    Annotation {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
}

impl BundleError {
    /// Whether the container's creator asked for something that cannot be.
    #[must_use]
    pub fn is_annotation(&self) -> bool {
        matches!(
            self,
            Self::Annotation { .. } | Self::Flag { .. } | Self::DiskSize { .. }
        )
    }
}

/// The parts of `config.json` that concern the VM.
#[derive(Debug, Default, Deserialize)]
pub struct Spec {
    #[serde(default, deserialize_with = "null_is_absent")]
    annotations: HashMap<String, String>,
    #[serde(default, deserialize_with = "null_is_absent")]
    linux: Linux,
    /// The whole file.
    #[serde(skip)]
    json: Vec<u8>,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default, deserialize_with = "null_is_absent")]
    resources: Resources,
}

#[derive(Debug, Default, Deserialize)]
struct Resources {
    #[serde(default, deserialize_with = "null_is_absent")]
    memory: Memory,
    #[serde(default, deserialize_with = "null_is_absent")]
    cpu: Cpu,
}

#[derive(Debug, Default, Deserialize)]
struct Memory {
    /// Bytes; -1 or 0 for none.
    limit: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
struct Cpu {
    /// Microseconds of CPU per period; -1 or 0 for no limit.
    quota: Option<i64>,
    /// Microseconds.
    period: Option<u64>,
}

/// As Go's decoder has it, and runc with it: `null` is what is not there.
fn null_is_absent<'de, T, D>(value: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(value).map(Option::unwrap_or_default)
}

/// Size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
}

impl Spec {
    /// Reads the configuration in `bundle`.
    ///
    /// # Errors
    /// When it is missing or malformed.
    pub fn read(bundle: &Path) -> Result<Self, BundleError> {
        let path = bundle.join(CONFIG);
        let text = std::fs::read(&path).map_err(|source| BundleError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let spec: Self = serde_json::from_slice(&text)
            .map_err(|source| BundleError::Malformed { path, source })?;
        Ok(Self { json: text, ..spec })
    }

    /// The whole configuration, as it was read.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// The VM that the container asks for; `None`: one of its own.
    #[must_use]
    pub fn vm_id(&self) -> Option<&str> {
        self.annotations.get(VM_ID).map(String::as_str)
    }

    /// Size of a VM made for this container: the configuration's, raised by the annotations
    /// or, where there is none, by the container's own limits (plus the guest's overhead).
    ///
    /// # Errors
    /// When an annotation is no positive number.
    pub fn vm_size(&self, config: &Config) -> Result<Size, BundleError> {
        let resources = &self.linux.resources;
        let memory = match self.number(VM_MEMORY_MIB)? {
            Some(mib) => Some(mib),
            None => positive(resources.memory.limit).map(|bytes| {
                saturating_u32(bytes.div_ceil(MIB)).saturating_add(config.mem_overhead_mib)
            }),
        };
        let vcpus = match self.number(VM_VCPUS)? {
            Some(vcpus) => Some(vcpus),
            None => positive(resources.cpu.quota)
                .zip(resources.cpu.period.filter(|p| *p > 0))
                .map(|(quota, period)| {
                    saturating_u32(quota.div_ceil(period)).min(fc_vm::machine::MAX_VCPUS)
                }),
        };
        Ok(Size {
            memory_mib: memory.unwrap_or(0).max(config.mem_size_mib),
            vcpus: vcpus.unwrap_or(0).max(config.vcpu_count),
        })
    }

    /// Bytes of the container's writable disk: the annotation's, else the configuration's.
    ///
    /// # Errors
    /// When the annotation is no size that a disk can have.
    pub fn disk_size(&self, config: &Config) -> Result<u64, BundleError> {
        let Some(value) = self.annotations.get(DISK_SIZE_ANNOTATION) else {
            return Ok(u64::from(config.writable_disk_size_mib) * MIB);
        };
        match value.parse() {
            Ok(mib) if DISK_MIB.contains(&mib) => Ok(u64::from(mib) * MIB),
            _ => Err(BundleError::DiskSize {
                value: value.clone(),
            }),
        }
    }

    /// Whether what the container writes is to be brought back to its snapshot.
    ///
    /// # Errors
    /// When the annotation is neither `true` nor `false`.
    pub fn write_back(&self) -> Result<bool, BundleError> {
        let value = self.annotations.get(WRITE_BACK_ANNOTATION);
        match value.map_or("false", String::as_str) {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(BundleError::Flag {
                name: WRITE_BACK_ANNOTATION,
                value: other.to_owned(),
            }),
        }
    }

    fn number(&self, name: &'static str) -> Result<Option<u32>, BundleError> {
        let Some(value) = self.annotations.get(name) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(number) if number > 0 => Ok(Some(number)),
            _ => Err(BundleError::Annotation {
                name,
                value: value.clone(),
            }),
        }
    }
}

/// Writes one of the shim's files into `bundle`.
///
/// # Errors
/// When it cannot be written.
pub fn write(bundle: &Path, name: &str, content: &str) -> Result<(), BundleError> {
    let path = bundle.join(name);
    std::fs::write(&path, content).map_err(|source| BundleError::File {
        action: "write",
        path,
        source,
    })
}

fn positive(number: Option<i64>) -> Option<u64> {
    number
        .and_then(|n| u64::try_from(n).ok())
        .filter(|n| *n > 0)
}

fn saturating_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            mem_size_mib: 128,
            mem_overhead_mib: 64,
            vcpu_count: 1,
            ..Config::default()
        }
    }

    fn size(json: &str) -> Result<Size, BundleError> {
        serde_json::from_str::<Spec>(json)
            .unwrap()
            .vm_size(&config())
    }

    #[test]
    fn size_is_the_default_raised() {
        let default = Size {
            memory_mib: 128,
            vcpus: 1,
        };
        for nothing in [
            "{}",
            r#"{"annotations":null,"linux":null}"#,
            r#"{"linux":{"resources":null}}"#,
            r#"{"linux":{"resources":{"memory":null,"cpu":null}}}"#,
            r#"{"linux":{"resources":{"memory":{"limit":null},"cpu":{"quota":null,"period":null}}}}"#,
        ] {
            assert_eq!(size(nothing).unwrap(), default, "{nothing}");
        }
        assert_eq!(
            size(r#"{"linux":{"resources":{"memory":{"limit":-1},"cpu":{"quota":-1,"period":100000}}}}"#)
                .unwrap(),
            default
        );
        let limited = r#"{"linux":{"resources":{"memory":{"limit":268435457},"cpu":{"quota":150000,"period":100000}}}}"#;
        let raised = Size {
            memory_mib: 257 + 64,
            vcpus: 2,
        };
        assert_eq!(size(limited).unwrap(), raised);
        let annotated = r#"{"annotations":{"aws.firecracker.vm.memory_mib":"512","aws.firecracker.vm.vcpus":"4"},
            "linux":{"resources":{"memory":{"limit":268435457}}}}"#;
        let annotated = size(annotated).unwrap();
        assert_eq!((annotated.memory_mib, annotated.vcpus), (512, 4));
        let lower = r#"{"annotations":{"aws.firecracker.vm.memory_mib":"5"}}"#;
        assert_eq!(size(lower).unwrap(), default);
    }

    #[test]
    fn a_wrong_annotation_is_named() {
        for value in ["0", "-1", "many", ""] {
            let json = format!(r#"{{"annotations":{{"{VM_MEMORY_MIB}":"{value}"}}}}"#);
            let error = size(&json).unwrap_err().to_string();
            assert!(error.contains(VM_MEMORY_MIB), "{error}");
        }
    }

    #[test]
    fn annotations_about_the_disk() {
        let spec = |name: &str, value: &str| {
            let json = serde_json::json!({"annotations": {name: value}}).to_string();
            serde_json::from_str::<Spec>(&json).unwrap()
        };
        let config = config();
        let default = u64::from(config.writable_disk_size_mib) << 20;
        assert_eq!(Spec::default().disk_size(&config).unwrap(), default);
        let small = spec(DISK_SIZE_ANNOTATION, "8").disk_size(&config);
        assert_eq!(small.unwrap(), 8 << 20);
        for value in ["7", "16777217", "99999999999", "0", "x"] {
            let error = spec(DISK_SIZE_ANNOTATION, value).disk_size(&config);
            let error = error.unwrap_err().to_string();
            let range =
                format!("{DISK_SIZE_ANNOTATION} must be a whole number of MiB from 8 to 16777216");
            assert!(error.contains(&range), "{error}");
            assert!(error.contains(&format!("{value:?}")), "{error}");
        }
        assert!(!Spec::default().write_back().unwrap());
        assert!(spec(WRITE_BACK_ANNOTATION, "true").write_back().unwrap());
        let error = spec(WRITE_BACK_ANNOTATION, "yes").write_back().unwrap_err();
        assert!(error.to_string().contains("\"yes\""), "{error}");
    }

    #[test]
    fn reads_the_annotation_that_names_the_vm() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Spec::read(dir.path()),
            Err(BundleError::File { .. })
        ));
        write(
            dir.path(),
            CONFIG,
            r#"{"annotations":{"aws.firecracker.vm.id":"vm1"}}"#,
        )
        .unwrap();
        assert_eq!(Spec::read(dir.path()).unwrap().vm_id(), Some("vm1"));
        write(dir.path(), CONFIG, "[").unwrap();
        assert!(matches!(
            Spec::read(dir.path()),
            Err(BundleError::Malformed { .. })
        ));
    }
}
