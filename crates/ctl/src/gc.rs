//! Removing what dead VMs left.

use fc_vm::list::{self, CleanUp, CleanUpError};
use fc_vm::machine::chain;
use serde::Serialize;

use crate::error::CtlError;
use crate::host::Host;

/// What became of a dead VM's leftovers.
#[derive(Serialize)]
struct Collected {
    namespace: String,
    id: String,
    removed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<String>,
}

/// Cleans up after every dead VM.
///
/// # Errors
/// When VMs cannot be looked for, or something stays; everything else is removed all the same.
pub fn run(host: &Host) -> Result<(), CtlError> {
    let mut collected = Vec::new();
    for vm in host.list()?.iter().filter(|vm| vm.is_dead()) {
        let errors = match list::clean_up(&vm.dir) {
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
