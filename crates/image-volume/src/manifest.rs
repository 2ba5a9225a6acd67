//! From an image's name to what its configuration says, for this machine's platform.
//!
//! The documents are those of the OCI image specification (v1.1: `image-index.md`, `manifest.md`, `config.md`) and
//! Docker's image manifest version 2, schema 2, which have the same fields.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use sha2::{Digest, Sha256};

use crate::{Containerd, ImageVolumeError};

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// Most indexes inside one another.
const MAX_INDEXES: usize = 4;

pub(crate) const OS: &str = "linux";

/// What is needed of an image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// `config.Volumes`, sorted.
    pub(crate) volumes: Vec<String>,
    /// The name of the snapshot with all layers; empty if there are none.
    pub(crate) chain_id: String,
}

/// This machine's architecture as images call it (`GOARCH`), and the variant that names its base level.
pub(crate) fn architecture() -> (&'static str, &'static str) {
    match ARCH {
        "x86_64" => ("amd64", "v1"),
        "aarch64" => ("arm64", "v8"),
        other => (other, ""),
    }
}

/// Reads what containerd has of the image called `name`.
pub(crate) async fn read(
    containerd: &Containerd,
    name: &str,
) -> Result<Option<Image>, ImageVolumeError> {
    let Some(target) = containerd.image(name).await? else {
        return Ok(None);
    };
    let mut descriptor = Descriptor {
        media_type: target.media_type,
        digest: target.digest,
        size: target.size,
        platform: None,
    };
    for _ in 0..=MAX_INDEXES {
        let is = |types: &[&str]| types.contains(&descriptor.media_type.as_str());
        if is(&INDEXES) {
            let index: Index = load(containerd, &descriptor).await?;
            descriptor = index.choose()?;
        } else if is(&MANIFESTS) {
            let manifest: Manifest = load(containerd, &descriptor).await?;
            if !CONFIGS.contains(&manifest.config.media_type.as_str()) {
                return Err(ImageVolumeError::MediaType(manifest.config.media_type));
            }
            let config: Config = load(containerd, &manifest.config).await?;
            return config.image(&manifest.config.digest).map(Some);
        } else {
            break;
        }
    }
    Err(ImageVolumeError::MediaType(descriptor.media_type))
}

async fn load<T: DeserializeOwned>(
    containerd: &Containerd,
    descriptor: &Descriptor,
) -> Result<T, ImageVolumeError> {
    let digest = &descriptor.digest;
    let content = containerd.document(digest, descriptor.size).await?;
    serde_json::from_slice(&content)
        .map_err(|error| ImageVolumeError::Json(digest.to_owned(), error))
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: i64,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Platform {
    fn is_ours(&self) -> bool {
        let (architecture, base) = architecture();
        self.os == OS
            && self.architecture == architecture
            && (self.variant.is_empty() || self.variant == base)
    }
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

impl Index {
    /// The entry for this platform, or the first that names none: its configuration does.
    fn choose(self) -> Result<Descriptor, ImageVolumeError> {
        let ours = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(Platform::is_ours);
        let open = |entry: &&Descriptor| entry.platform.is_none();
        let entries = &self.manifests;
        let found = entries.iter().find(ours).or(entries.iter().find(open));
        found.cloned().ok_or_else(wrong_platform)
    }
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
}

#[derive(Debug, Deserialize)]
struct Config {
    os: String,
    architecture: String,
    config: Option<ContainerConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct ContainerConfig {
    /// A set: the values are empty.
    #[serde(rename = "Volumes")]
    volumes: Option<BTreeMap<String, IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Config {
    fn image(self, digest: &str) -> Result<Image, ImageVolumeError> {
        if self.os != OS || self.architecture != architecture().0 {
            return Err(wrong_platform());
        }
        let volumes = self.config.and_then(|config| config.volumes);
        Ok(Image {
            volumes: volumes.unwrap_or_default().into_keys().collect(),
            chain_id: chain_id(&self.rootfs.diff_ids)
                .ok_or_else(|| ImageVolumeError::DiffId(digest.to_owned()))?,
        })
    }
}

/// Identifies a stack of layers, lowest first (`config.md`, "Layer ChainID"); `None` if one is not a digest.
fn chain_id(diff_ids: &[String]) -> Option<String> {
    let is_digest = |id: &String| {
        id.strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64 && HEXLOWER.decode(hex.as_bytes()).is_ok())
    };
    if !diff_ids.iter().all(is_digest) {
        return None;
    }
    let chain = diff_ids.iter().cloned().reduce(|chain, id| {
        let hash = Sha256::digest(format!("{chain} {id}"));
        format!("sha256:{}", HEXLOWER.encode(&hash))
    });
    Some(chain.unwrap_or_default())
}

fn wrong_platform() -> ImageVolumeError {
    ImageVolumeError::Platform(format!("{OS}/{}", architecture().0))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn choose(platforms: &[Value]) -> Result<usize, ImageVolumeError> {
        let entry = |(number, platform): (usize, &Value)| {
            json!({
                "mediaType": MANIFESTS[0],
                "digest": "sha256:0",
                "size": number,
                "platform": platform,
            })
        };
        let manifests: Vec<Value> = platforms.iter().enumerate().map(entry).collect();
        let index: Index = serde_json::from_value(json!({ "manifests": manifests })).unwrap();
        index
            .choose()
            .map(|entry| usize::try_from(entry.size).unwrap())
    }

    #[test]
    fn an_index_is_searched_for_this_platform() {
        let (arch, base) = architecture();
        let platform = |os: &str, arch: &str, variant: &str| json!({"os": os, "architecture": arch, "variant": variant});
        let others = [
            platform("windows", arch, ""),
            platform(OS, "s390x", ""),
            platform(OS, arch, "v99"),
            platform("unknown", "unknown", ""),
        ];
        assert!(matches!(
            choose(&others),
            Err(ImageVolumeError::Platform(_))
        ));
        for ours in [platform(OS, arch, ""), platform(OS, arch, base)] {
            let all = [&others[..], &[Value::Null, ours]].concat();
            assert_eq!(choose(&all).unwrap(), 5);
        }
        let with_open = [&others[..], &[Value::Null, Value::Null]].concat();
        assert_eq!(choose(&with_open).unwrap(), 4);
    }

    #[test]
    fn a_configuration_says_volumes_and_layers() {
        let id = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let config = |config: Value, diff_ids: &[String]| {
            let config = json!({
                "os": OS,
                "architecture": architecture().0,
                "config": config,
                "rootfs": {"diff_ids": diff_ids},
            });
            serde_json::from_value::<Config>(config).unwrap().image("d")
        };
        let image = config(json!({"Volumes": {"/b": {}, "/a": {}}}), &[]).unwrap();
        assert_eq!(image.volumes, ["/a", "/b"]);
        assert_eq!(image.chain_id, "");
        for none in [json!({"Volumes": null}), json!({}), json!(null)] {
            let image = config(none, &[id("1")]).unwrap();
            assert_eq!(image.volumes, [""; 0]);
            assert_eq!(image.chain_id, id("1"));
        }
        // printf 'sha256:1..1 sha256:2..2' | sha256sum
        assert_eq!(
            chain_id(&[id("1"), id("2")]).unwrap(),
            "sha256:9932074217c35353d2e03a3f5a86549f7c67bfeb0ba53e23d69f4d4c8f7958f5"
        );
        assert_ne!(chain_id(&[id("1"), id("2")]), chain_id(&[id("2"), id("1")]));
        for bad in ["", "sha256:", "sha256:../x", "md5:00"] {
            let bad = config(json!({}), &[bad.to_owned()]);
            assert!(matches!(bad, Err(ImageVolumeError::DiffId(_))));
        }
    }
}
