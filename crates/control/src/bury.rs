//! What dead shims left: undone, and told to containerd by whoever undid it.

use fc_proto::control::{TOPIC_VM_STOP, VMStop};
use fc_rpc::events::envelope;
use fc_vm::dir::VmDir;
use fc_vm::list::{self, CleanUp, CleanUpError};

use crate::host::Host;

/// Undoes what is left of a VM whose shim is dead, see [`list::bury`], and says what that shim could not say
/// any more. (Its tasks' ends are found by containerd itself, which calls `delete` for them.)
///
/// Blocks as [`list::clean_up`] does. Needs the host's tokio runtime only to go on, for the event.
///
/// # Errors
/// See [`CleanUpError`].
pub fn bury(host: &Host, dir: &VmDir) -> Result<CleanUp, CleanUpError> {
    let burial = list::bury(dir);
    if burial.ended_vm {
        stopped(host, dir);
    }
    if matches!(burial.outcome, Ok(CleanUp::Done)) {
        let (namespace, vm_id) = (dir.namespace(), dir.vm_id());
        tracing::warn!(
            namespace,
            vmID = vm_id,
            "The shim had died; what it left is gone now"
        );
    }
    burial.outcome
}

fn stopped(host: &Host, dir: &VmDir) {
    let event = VMStop {
        VMID: dir.vm_id().to_owned(),
        ..VMStop::default()
    };
    let namespace = dir.namespace();
    match envelope(namespace, TOPIC_VM_STOP, "VMStop", &event) {
        Ok(event) => host.events.forward(event),
        Err(error) => tracing::error!(namespace, "Event cannot be encoded: {error}"),
    }
}
