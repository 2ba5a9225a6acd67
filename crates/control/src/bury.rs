//! What dead shims left: undone, and told to containerd by whoever undid it.

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
        host.events.vm_stopped(dir.namespace(), dir.vm_id());
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
