//! The event of a VM's end, when its shim was killed and cannot send it: whoever undoes what that one left does.

use std::time::Duration;

use fc_rpc::events::Events;

use crate::args::Args;
use crate::start;

/// How long containerd may take over the event.
const BOUND: Duration = Duration::from_secs(5);

/// Tells containerd that the VM is no more. (Its tasks' ends containerd publishes itself.)
pub async fn tell(args: &Args, vm_id: &str) {
    let events = Events::new(start::ttrpc_address(args).into(), &args.namespace);
    events.vm_stopped(&args.namespace, vm_id);
    // The event is lost if containerd does not take it; there is nobody to hear of that.
    events.flush(BOUND).await;
}
