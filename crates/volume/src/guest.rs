//! Volumes of an image, prepared inside the VM ([`GuestImage`]).
//!
//! What the image is, and how a container of it is run, is the client's matter: through containerd, `ctr`, or
//! the task API. This module says what that container must be given, and where its volumes are afterwards.

use std::io;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use crate::set::SetError;

/// Where the guest has the programs it lends to containers, and where such a container sees them.
const PROGRAMS: (&str, &str) = ("/usr/local/bin", "/hostbin");
/// Where the guest keeps volumes, and where a container that makes them sees them.
const VOLUMES: (&str, &str) = ("/volumes", "/hostvolumes");
const PROGRAM: &str = "/hostbin/volume-init";

/// Directories of a container image that become volumes of the VM it runs in.
///
/// ```no_run
/// # fn main() -> Result<(), fc_volume::SetError> {
/// use fc_volume::{GuestImage, Set};
///
/// let content = GuestImage::new("docker.io/library/content:1", "content-1", &["/srv/www"])?;
/// let mut set = Set::new();
/// set.add_guest(&content)?;
/// // Run a container `content-1` of the image in the VM: with `content.container_mounts()` added to its
/// // mounts, `content.process_args()` as its process, and `content.input()` on its standard input.
/// // Then give its exit status and what it wrote:
/// # let (status, stdout) = (0, b"");
/// content.check(status, stdout)?;
/// // The mounts for the containers that use the volumes:
/// let mounts = set.mounts_of("docker.io/library/content:1")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    name: String,
    container: String,
    volumes: Vec<PathBuf>,
}

impl GuestImage {
    /// The directories `volumes` of an image, absolute paths in it, made volumes by a container called
    /// `container`, a name that no other has in the VM. `name` (the image's, say) is for [`mounts_of`] and
    /// errors.
    ///
    /// [`mounts_of`]: crate::Set::mounts_of
    ///
    /// # Errors
    /// When `container` is not made of letters, digits and single `.`, `-` and `_` between them (containerd's
    /// rule; at most 76), or a volume is not an absolute path without `..` below `/`.
    pub fn new(name: &str, container: &str, volumes: &[&str]) -> Result<GuestImage, SetError> {
        if !is_identifier(container) {
            return Err(SetError::Container(container.to_owned()));
        }
        let volumes = volumes.iter().map(PathBuf::from);
        let volumes: Vec<PathBuf> = volumes.collect();
        if let Some(bad) = volumes.iter().find(|path| !is_volume_path(path)) {
            return Err(SetError::VolumePath(bad.clone()));
        }
        Ok(GuestImage {
            name: name.to_owned(),
            container: container.to_owned(),
            volumes,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that the container must have.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// OCI mounts that the container needs besides its usual ones: the guest's programs and its volumes.
    #[must_use]
    pub fn container_mounts(&self) -> Vec<Value> {
        [(PROGRAMS, "ro"), (VOLUMES, "rw")]
            .map(|((source, destination), access)| {
                // The prefix says that the source is the guest's path; the host may have it, too.
                json!({
                    "type": "vm:bind",
                    "source": source,
                    "destination": destination,
                    "options": ["bind", access],
                })
            })
            .into()
    }

    /// The container's process: an absolute path, and no arguments.
    #[must_use]
    pub fn process_args(&self) -> Vec<String> {
        vec![PROGRAM.to_owned()]
    }

    /// JSON for the process's standard input, which must be closed after it.
    #[must_use]
    pub fn input(&self) -> Vec<u8> {
        let input = json!({
            "From": "/",
            "To": format!("{}/{}", VOLUMES.1, self.container),
            "Volumes": self.volumes,
        });
        input.to_string().into_bytes()
    }

    /// Whether the process did its work: its exit status, and what it wrote to standard output.
    ///
    /// # Errors
    /// When the status is not 0; the source is what the process said.
    pub fn check(&self, status: u32, stdout: &[u8]) -> Result<(), SetError> {
        if status == 0 {
            return Ok(());
        }
        let answer: Option<Value> = serde_json::from_slice(stdout).ok();
        let said = answer
            .as_ref()
            .and_then(|answer| answer["Error"].as_str())
            .map_or_else(
                || String::from_utf8_lossy(stdout).into_owned(),
                str::to_owned,
            );
        Err(SetError::Init {
            name: self.name.clone(),
            status,
            said: io::Error::other(said),
        })
    }

    /// Each volume's path in the image, and its path in the guest.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        let dir = Path::new(VOLUMES.0).join(&self.container);
        self.volumes.iter().map(move |volume| {
            let inside = volume.strip_prefix("/").unwrap_or(volume);
            (volume.as_path(), dir.join(inside))
        })
    }
}

/// containerd's rule for identifiers (`pkg/identifiers`).
fn is_identifier(name: &str) -> bool {
    name.len() <= 76
        && name
            .split(['.', '-', '_'])
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

fn is_volume_path(path: &Path) -> bool {
    path.is_absolute()
        && path.components().count() > 1
        && path.components().all(|part| part != Component::ParentDir)
        && path.to_str().is_some()
}
