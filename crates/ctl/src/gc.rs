//! Removing what dead VMs left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fc_errors::chain;
use fc_rpc::events::Events;
use fc_vm::list::{self, CleanUp, CleanUpError, Vm};
use serde::Serialize;

use crate::error::CtlError;
use crate::host::Host;

/// How long a containerd may take over the events of its VMs' ends.
const TELL_BOUND: Duration = Duration::from_secs(10);

/// What became of a dead VM's leftovers.
#[derive(Serialize)]
struct Collected {
    namespace: String,
    id: String,
    removed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
}

/// Who is told of the VMs' ends: the containerd of each, by its ttrpc address.
#[derive(Default)]
struct Told(BTreeMap<PathBuf, Events>);

impl Told {
    fn stopped(&mut self, vm: &Vm) {
        // A VM without the record never ran, or is one of an older version.
        let Some(address) = vm.containerd_ttrpc() else {
            return;
        };
        let events = self.0.entry(address.to_owned());
        let events = events.or_insert_with_key(|address| Events::new(address.clone(), ""));
        events.vm_stopped(vm.dir.namespace(), vm.dir.vm_id());
    }

    /// Waits until they know. One that does not listen is named, and is no failure: it starts with no VM anyway.
    async fn flush(self) {
        for (address, events) in &self.0 {
            if !events.flush(TELL_BOUND).await {
                unheard(address);
            }
        }
    }
}

fn unheard(address: &Path) {
    eprintln!(
        "firecracker-ctl: containerd at {} was not told of its VMs' ends: it does not answer",
        address.display()
    );
}

/// Cleans up after every dead VM, and tells containerd of those that ran.
///
/// # Errors
/// When VMs cannot be looked for, or something stays; everything else is removed all the same.
pub async fn run(host: &Host) -> Result<(), CtlError> {
    let mut collected = Vec::new();
    let mut told = Told::default();
    for vm in host.list()?.iter().filter(|vm| vm.is_dead()) {
        let burial = list::bury(&vm.dir);
        if burial.ended_vm {
            told.stopped(vm);
        }
        let errors = match burial.outcome {
            Ok(CleanUp::Done) => Vec::new(),
            // Somebody else was faster, or uses the name again.
            Ok(CleanUp::Nothing | CleanUp::Alive) => continue,
            Err(CleanUpError::Undo(errors)) => errors.iter().map(|e| chain(e)).collect(),
            Err(error) => vec![chain(&error)],
        };
        collected.push(Collected {
            namespace: vm.dir.namespace().to_owned(),
            id: vm.dir.vm_id().to_owned(),
            removed: errors.is_empty(),
            errors,
        });
    }
    told.flush().await;
    host.output.print(&collected, |collected| text(collected));
    match collected.iter().filter(|vm| !vm.removed).count() {
        0 => Ok(()),
        stayed => Err(CtlError::Leftovers(stayed)),
    }
}

fn text(collected: &[Collected]) -> String {
    if collected.is_empty() {
        return "Nothing to remove".to_owned();
    }
    let line = |vm: &Collected| {
        let name = format!("{}/{}", vm.namespace, vm.id);
        if vm.removed {
            format!("{name}: removed")
        } else {
            format!("{name}: {}", vm.errors.join("; "))
        }
    };
    collected.iter().map(line).collect::<Vec<_>>().join("\n")
}
