//! The record of what a build read, by which the next one knows whether to build.

use std::collections::BTreeMap;
use std::path::Path;

use crate::file;

/// Digests of the files read so far, by absolute path.
#[derive(Debug, Default)]
pub struct Inputs {
    digests: BTreeMap<String, String>,
}

impl Inputs {
    /// Reads a file and records it.
    pub fn read(&mut self, path: &Path) -> Result<Vec<u8>, file::Error> {
        let name = file::canonical(path)?;
        let data = file::read(&name)?;
        self.digests
            .insert(name.display().to_string(), file::sha256(&data));
        Ok(data)
    }

    /// Path to SHA-256.
    pub fn into_digests(self) -> BTreeMap<String, String> {
        self.digests
    }
}

/// Whether every file still has the recorded content.
pub fn unchanged(digests: &BTreeMap<String, String>) -> bool {
    digests
        .iter()
        .all(|(path, digest)| file::sha256_of(Path::new(path)).is_ok_and(|now| now == *digest))
}
