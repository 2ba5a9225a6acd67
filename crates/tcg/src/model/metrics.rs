use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `PUT /metrics`. Unknown fields pass, as they do in Firecracker.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct MetricsConfig {
    /// File or named pipe that takes one JSON object per line.
    pub metrics_path: PathBuf,
}
