//! The host's end of a VM's vsock device.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fc_jailer::Jailer;
use fc_vsock::Listener;

use crate::dir::VSOCK;

/// Ports of the host that a guest can connect to. Clones are the same VM's.
#[derive(Clone)]
pub struct HostPorts {
    vsock: PathBuf,
    jail: Arc<dyn Jailer>,
}

impl HostPorts {
    pub(super) fn new(jail: Arc<dyn Jailer>) -> Self {
        Self {
            vsock: jail.root().join(VSOCK),
            jail,
        }
    }

    /// Path of the VMM's vsock socket, for connections to the guest.
    #[must_use]
    pub fn vsock(&self) -> &Path {
        &self.vsock
    }

    /// Listens on a port, where the VMM can reach it.
    ///
    /// # Errors
    /// When the socket cannot be made, or not be given to the VMM's user.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        let listener = Listener::bind(&self.vsock, port)?;
        let name = listener.path().file_name().and_then(|name| name.to_str());
        let name = name.ok_or(io::ErrorKind::InvalidFilename)?;
        self.jail.share(name).map_err(io::Error::other)?;
        Ok(listener)
    }
}

impl fmt::Debug for HostPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostPorts").field(&self.vsock).finish()
    }
}
