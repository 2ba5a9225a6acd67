//! The vsock device between `PUT /vsock` and the start of the guest.

use std::fs::remove_file;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use fc_vhost_vsock::{DeviceEnd, VsockConfig as DeviceConfig, VsockDevice, VsockError};
use tokio::io::Interest;

use crate::fault::VsockFault;
use crate::model::VsockConfig;
use crate::readiness;

/// A device that listens on its host socket and waits for QEMU.
#[derive(Debug)]
pub struct Vsock {
    /// As configured.
    pub config: VsockConfig,
    device: Arc<VsockDevice>,
    /// QEMU's end of the vhost-user connection, until QEMU has taken it.
    qemu_end: Option<OwnedFd>,
}

impl Vsock {
    /// Binds the host socket and starts the device.
    ///
    /// # Errors
    /// The socket exists or cannot be made, or the context id is reserved.
    pub fn new(config: VsockConfig) -> Result<Self, VsockFault> {
        let (device, qemu_end) = start(&config)?;
        Ok(Self {
            config,
            device,
            qemu_end: Some(qemu_end),
        })
    }

    /// QEMU's end of the connection. A device serves one QEMU, so after a failed start of QEMU the device is
    /// started anew here.
    ///
    /// # Errors
    /// It cannot be started anew.
    pub fn take_qemu_end(&mut self) -> Result<OwnedFd, VsockFault> {
        if let Some(end) = self.qemu_end.take() {
            return Ok(end);
        }
        remove_file(&self.config.uds_path).map_err(VsockFault::Bind)?;
        let (device, end) = start(&self.config)?;
        self.device = device;
        Ok(end)
    }

    /// Waits for the device's end: why it has failed, or `None` if QEMU has closed its side.
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub fn failure(&self) -> io::Result<impl Future<Output = Option<String>> + Send + use<>> {
        let device = Arc::clone(&self.device);
        let ended = readiness::watch(device.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(async move {
            // Readiness alone tells; the descriptor is not read.
            let ready = ended.readable().await.map(drop);
            match (ready, device.end()) {
                (_, Some(DeviceEnd::Failed(reason))) => Some(reason),
                (_, Some(DeviceEnd::Disconnected)) => None,
                (Err(error), None) => Some(format!("its end cannot be waited for: {error}")),
                (Ok(()), None) => Some("it has ended without a reason".to_owned()),
            }
        })
    }

    /// What has gone over the device, under Firecracker's names.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 6] {
        let counted = self.device.counters();
        [
            ("rx_packets_count", counted.rx_packets),
            ("rx_bytes_count", counted.rx_bytes),
            ("tx_packets_count", counted.tx_packets),
            ("tx_bytes_count", counted.tx_bytes),
            ("conns_added", counted.conns_added),
            ("conns_removed", counted.conns_removed),
        ]
    }

    /// Ends the device and removes its host socket, to make room for another.
    ///
    /// # Errors
    /// The socket cannot be removed.
    pub fn remove(self) -> Result<(), VsockFault> {
        drop(self.device);
        remove_file(&self.config.uds_path).map_err(VsockFault::Bind)
    }
}

/// Starts the device and connects to it on QEMU's behalf, so that QEMU needs no path.
fn start(config: &VsockConfig) -> Result<(Arc<VsockDevice>, OwnedFd), VsockFault> {
    let path = PathBuf::from(format!("{}.vhost", config.uds_path));
    let vhost_socket = UnixListener::bind(&path).map_err(VsockFault::Bind)?;
    let connected = UnixStream::connect(&path);
    remove_file(&path).map_err(VsockFault::Bind)?;
    let connected = connected.map_err(VsockFault::Bind)?;
    let device = VsockDevice::start(DeviceConfig {
        vhost_socket,
        uds_path: PathBuf::from(&config.uds_path),
        guest_cid: u64::from(config.guest_cid),
    })
    .map_err(|error| match error {
        VsockError::Bind { source, .. } => VsockFault::Bind(source),
        other => VsockFault::Backend(other),
    })?;
    Ok((Arc::new(device), connected.into()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn vsock(directory: &tempfile::TempDir) -> Vsock {
        let uds_path = directory.path().join("v.sock").display().to_string();
        let config = serde_json::json!({ "guest_cid": 3, "uds_path": uds_path });
        Vsock::new(serde_json::from_value(config).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_failure_is_told_and_the_end_of_qemu_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let mut broken = vsock(&directory);
        let failure = broken.failure().unwrap();
        let mut qemu = UnixStream::from(broken.take_qemu_end().unwrap());
        qemu.write_all(&[0xff; 64]).unwrap();
        let reason = failure.await.expect("this is no vhost-user message");
        assert!(!reason.is_empty());
        broken.remove().unwrap();

        let mut whole = vsock(&directory);
        let failure = whole.failure().unwrap();
        drop(whole.take_qemu_end().unwrap());
        assert_eq!(failure.await, None);
    }
}
