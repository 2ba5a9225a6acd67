use std::path::PathBuf;

use serde::Deserialize;

/// `PUT /serial`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// File or named pipe that takes what the guest writes; standard output when absent. With a file, standard
    /// input does not go to the guest.
    pub serial_out_path: Option<PathBuf>,
}
