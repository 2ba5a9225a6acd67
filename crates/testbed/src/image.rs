//! A test image made on the spot: busybox in an OCI image layout, in a tar that
//! `ctr image import` takes. No registry is involved.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Name under which the image is imported.
pub const NAME: &str = "localhost/busybox:latest";

/// A file with this path exists in the first layer and is deleted by the second.
pub const DELETED_FILE: &str = "etc/deleted-by-second-layer";
/// A file that only the second layer has; its content is the word `second`.
pub const SECOND_LAYER_FILE: &str = "etc/second-layer";

/// Where Debian's busybox-static puts its program.
const BUSYBOX: &str = "/bin/busybox";

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// busybox is missing or unreadable.
    #[error("Cannot read {path}; install busybox-static")]
    Busybox {
        /// The program looked for.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// busybox did not list its applets.
    #[error("{path} --list failed; install busybox-static")]
    Applets {
        /// The program asked.
        path: PathBuf,
    },
    /// The tar could not be written.
    #[error("Cannot write image tar {path}")]
    Write {
        /// The tar.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes the test image to `tar` (two layers, so that overlayfs has something to merge).
///
/// # Errors
/// busybox is missing or `tar` cannot be written.
pub fn write(tar: &Path) -> Result<(), ImageError> {
    let busybox = PathBuf::from(BUSYBOX);
    let program = std::fs::read(&busybox).map_err(|source| ImageError::Busybox {
        path: busybox.clone(),
        source,
    })?;
    let applets = applets(&busybox)?;
    let layers = first_layer(&program, &applets)
        .and_then(|first| Ok([first, second_layer()?]))
        .and_then(|layers| {
            let config = json!({"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]});
            archive(NAME, &config, &layers)
        })
        .and_then(|bytes| std::fs::write(tar, bytes));
    layers.map_err(|source| ImageError::Write {
        path: tar.to_owned(),
        source,
    })
}

fn applets(busybox: &Path) -> Result<Vec<String>, ImageError> {
    let failed = || ImageError::Applets {
        path: busybox.to_owned(),
    };
    let out = std::process::Command::new(busybox)
        .arg("--list")
        .output()
        .map_err(|_| failed())?;
    let list = String::from_utf8_lossy(&out.stdout);
    let names: Vec<String> = list
        .split_whitespace()
        .filter(|name| *name != "busybox")
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return Err(failed());
    }
    Ok(names)
}

fn first_layer(busybox: &[u8], applets: &[String]) -> io::Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for dir in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"] {
        let mode = if dir == "tmp" { 0o1777 } else { 0o755 };
        entry(&mut layer, EntryType::Directory, dir, mode, b"")?;
    }
    entry(
        &mut layer,
        EntryType::Regular,
        "bin/busybox",
        0o755,
        busybox,
    )?;
    for name in applets {
        let mut header = header(EntryType::Link, 0o755, 0);
        layer.append_link(&mut header, format!("bin/{name}"), "bin/busybox")?;
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    entry(&mut layer, EntryType::Regular, "etc/passwd", 0o644, passwd)?;
    entry(
        &mut layer,
        EntryType::Regular,
        "etc/group",
        0o644,
        b"root:x:0:\n",
    )?;
    entry(&mut layer, EntryType::Regular, DELETED_FILE, 0o644, b"")?;
    layer.into_inner()
}

fn second_layer() -> io::Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    let (dir, name) = DELETED_FILE.rsplit_once('/').unwrap_or(("", DELETED_FILE));
    let whiteout = format!("{dir}/.wh.{name}");
    entry(&mut layer, EntryType::Regular, &whiteout, 0o644, b"")?;
    entry(
        &mut layer,
        EntryType::Regular,
        SECOND_LAYER_FILE,
        0o644,
        b"second\n",
    )?;
    layer.into_inner()
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn entry<W: Write>(
    tar: &mut Builder<W>,
    kind: EntryType,
    path: &str,
    mode: u32,
    content: &[u8],
) -> io::Result<()> {
    let mut header = header(kind, mode, content.len() as u64);
    tar.append_data(&mut header, path, content)
}

/// An image called `name` for this machine's platform, as a tar with an OCI image layout: blobs, index and marker.
/// `config` is the configuration's `config`, and `layers`, lowest first, are uncompressed tars.
///
/// # Errors
/// When something does not fit into a tar.
pub fn archive(name: &str, config: &Value, layers: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    let mut blob = |content: &[u8], media_type: &str| -> io::Result<Value> {
        let digest = hex(&Sha256::digest(content));
        entry(
            &mut tar,
            EntryType::Regular,
            &format!("blobs/sha256/{digest}"),
            0o644,
            content,
        )?;
        Ok(json!({
            "mediaType": format!("application/vnd.oci.image.{media_type}"),
            "digest": format!("sha256:{digest}"),
            "size": content.len(),
        }))
    };
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{}", hex(&Sha256::digest(layer))))
        .collect();
    let config = json!({
        "architecture": oci_architecture(),
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(config.to_string().as_bytes(), "config.v1+json")?;
    let layers = layers
        .iter()
        .map(|layer| blob(layer, "layer.v1.tar"))
        .collect::<io::Result<Vec<_>>>()?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": layers,
    });
    let mut manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json")?;
    manifest["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit_once(':').map_or("latest", |(_, tag)| tag),
    });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
    entry(
        &mut tar,
        EntryType::Regular,
        "index.json",
        0o644,
        index.as_bytes(),
    )?;
    entry(
        &mut tar,
        EntryType::Regular,
        "oci-layout",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    tar.into_inner()
}

/// This machine's architecture as images call it.
#[must_use]
pub fn oci_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
