//! How a drive's file is swapped.
//!
//! QEMU tells a guest that a disk has changed only when the disk's block node is resized, and resizing
//! really resizes the file behind it. So the guest's processors are stopped for about 2 ms; a node in memory, the
//! bell, takes the drive's place, is resized to the new file's size, which raises the device's
//! configuration interrupt, and gives way to the new file's node. No host file is ever resized, read-only
//! devices work the same way, and the guest never reads from the bell.

use std::os::fd::AsFd;

use serde_json::{Value, json};

use crate::drive::{DriveFile, DriveMode};
use crate::qemu::{BELL_NODE, QemuError, Qmp, drive_node};

/// One swap under way.
pub(super) struct Swap<'a> {
    pub(super) qmp: &'a Qmp,
    /// QOM path of the virtio device.
    pub(super) device: String,
    pub(super) old_node: &'a str,
    pub(super) new_node: &'a str,
    /// Bytes the guest is to see.
    pub(super) size: u64,
}

impl Swap<'_> {
    pub(super) async fn run(
        &self,
        new: &DriveFile,
        mode: DriveMode,
        runs: bool,
    ) -> Result<(), QemuError> {
        self.resize_bell().await?;
        let added = self
            .qmp
            .execute_with("add-fd", json!({}), Some(new.file.as_fd()))
            .await?;
        let fdset = added["fdset-id"]
            .as_i64()
            .ok_or_else(|| QemuError::Protocol("an answer to add-fd without a set".to_owned()))?;
        let node = drive_node(self.new_node, fdset, new, mode);
        let opened = self.qmp.execute("blockdev-add", node).await;
        // An open node has its own copy of the descriptor.
        self.qmp
            .execute("remove-fd", json!({ "fdset-id": fdset }))
            .await?;
        opened?;

        let attached = self.attach(runs).await;
        let unused = if attached.is_ok() {
            self.old_node
        } else {
            self.new_node
        };
        let closed = self
            .qmp
            .execute("blockdev-del", json!({ "node-name": unused }))
            .await;
        if let Err(error) = closed {
            // The swap is as it is; what stays open is a descriptor of QEMU's.
            log::warn!("A drive's unused file stays open: {error}");
        }
        attached
    }

    /// Exchanges the nodes while the guest stands still.
    async fn attach(&self, runs: bool) -> Result<(), QemuError> {
        if runs {
            self.qmp.execute("stop", json!({})).await?;
        }
        let exchanged = self.ring_and_exchange().await;
        let back = match &exchanged {
            Ok(()) => Ok(()),
            Err(_) => self.set_node(self.old_node).await,
        };
        if runs && back.is_ok() {
            self.qmp.execute("cont", json!({})).await?;
        }
        exchanged.and(back)
    }

    async fn ring_and_exchange(&self) -> Result<(), QemuError> {
        self.set_node(BELL_NODE).await?;
        self.resize_bell().await?;
        self.set_node(self.new_node).await
    }

    async fn set_node(&self, node: &str) -> Result<(), QemuError> {
        let arguments = json!({ "path": self.device, "property": "drive", "value": node });
        self.qmp.execute("qom-set", arguments).await.map(drop)
    }

    async fn resize_bell(&self) -> Result<Value, QemuError> {
        self.qmp
            .execute(
                "block_resize",
                json!({ "node-name": BELL_NODE, "size": self.size }),
            )
            .await
    }
}
