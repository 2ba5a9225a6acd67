//! What the shim says about itself.

use std::collections::HashMap;

use fc_proto::containerd::types::introspection::{RuntimeInfo, RuntimeVersion};
use fc_proto::protobuf::{self, Message, MessageField};

/// The runtime's name, by which containerd finds this executable.
pub const RUNTIME: &str = "aws.firecracker";

/// The answer to `-info`: a `containerd.types.RuntimeInfo`. The host's runtime options and
/// features do not apply in a guest, so there are none.
pub fn runtime_info() -> protobuf::Result<Vec<u8>> {
    RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        }),
        annotations: HashMap::new(),
        ..RuntimeInfo::default()
    }
    .write_to_bytes()
}

/// The answer to `-v`.
#[must_use]
pub fn version() -> String {
    format!(
        "containerd-shim-aws-firecracker:\n  Version: {}\n  Guest protocol: {}\n",
        env!("CARGO_PKG_VERSION"),
        fc_proto::guest::PROTOCOL
    )
}
