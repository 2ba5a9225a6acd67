//! Stub files on the host.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::{InvalidId, drive_id, encode};

/// Why a stub file could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name is too long for a drive's id.
    #[error("Stub name {name:?} cannot become a drive id")]
    Name {
        /// The stub's name.
        name: String,
        /// What is wrong with the id.
        source: InvalidId,
    },
    /// The file exists already, or cannot be created or written.
    #[error("Cannot create the stub drive {}", path.display())]
    Write {
        /// The stub file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Writes the stub file `stub_name` in `dir` (mode 0600, must not exist) and returns the drive's id.
///
/// # Errors
/// [`CreateError`]; a file that was created but could not be written is removed.
pub fn create(dir: &Path, stub_name: &str) -> Result<String, CreateError> {
    let id = drive_id(stub_name);
    let sector = encode(&id).map_err(|source| CreateError::Name {
        name: stub_name.to_owned(),
        source,
    })?;
    let path = dir.join(stub_name);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(&path).and_then(|mut file| {
        file.write_all(&sector).inspect_err(|_| {
            // The write error is the one to report.
            let _ = std::fs::remove_file(&path);
        })
    });
    match written {
        Ok(()) => Ok(id),
        Err(source) => Err(CreateError::Write { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SECTOR, parse};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn stub_is_written_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let id = create(dir.path(), "ctrstub1").expect("a stub");
        let path = dir.path().join("ctrstub1");
        let content = std::fs::read(&path).expect("the stub's content");
        assert_eq!(content.len(), SECTOR);
        assert_eq!(parse(&content), Some(id.as_str()));
        let mode = std::fs::metadata(&path)
            .expect("metadata")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        let error = create(dir.path(), "ctrstub1").expect_err("the second time");
        assert!(
            matches!(&error, CreateError::Write { source, .. } if source.kind() == io::ErrorKind::AlreadyExists),
            "{error:?}"
        );
    }
}
