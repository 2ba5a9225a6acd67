//! Shims that end by themselves: whatever one left when it was killed goes at once.

use std::fs::File;
use std::process::Child;

use fc_errors::chain;
use fc_vm::dir::VmDir;
use fc_vm::list::Vm;
use fc_vm::process::ProcessId;
use tokio::task::JoinSet;

use crate::bury::bury;
use crate::error::ControlError;
use crate::host::{Host, blocking};
use crate::log::{self, LastWords};

/// See [`Host::adopt`].
pub async fn adopt(host: &Host) -> Result<(), ControlError> {
    // All at the same time: a VM whose starter hangs, or whose VMM does not end, delays no other.
    let mut adoptions = JoinSet::new();
    for vm in host.list().await? {
        adoptions.spawn(adopt_one(host.clone(), vm));
    }
    while adoptions.join_next().await.is_some() {}
    Ok(())
}

async fn adopt_one(host: Host, vm: Vm) {
    let shim = match vm.shim() {
        Some(shim) => Some(shim),
        None => {
            clear(&host, vm.dir.clone()).await;
            // One that was just being started is there now.
            let found = host.find(vm.dir.namespace(), vm.dir.vm_id()).await;
            found.ok().map(|shim| shim.process)
        }
    };
    let Some(shim) = shim else { return };
    let (namespace, vm_id) = (vm.dir.namespace(), vm.dir.vm_id());
    tracing::info!(namespace, vmID = vm_id, pid = shim.pid, "Found a VM");
    let found = Watched {
        dir: vm.dir,
        shim,
        child: None,
        log: None,
    };
    // Whatever it says last, nobody waits for it.
    let _ = spawn(&host, found);
}

/// A shim to watch.
pub struct Watched {
    /// Its VM's directory.
    pub dir: VmDir,
    /// Its process.
    pub shim: ProcessId,
    /// The same as a child of this process, which is to be reaped.
    pub child: Option<Child>,
    /// The reading end of its log, if it was open from the beginning.
    pub log: Option<File>,
}

/// Watches a shim until it ends, and its log.
pub fn spawn(host: &Host, watched: Watched) -> LastWords {
    let Watched {
        dir,
        shim,
        child,
        log,
    } = watched;
    let words = LastWords::default();
    let log = tokio::spawn(log::follow(dir.clone(), log, words.clone()));
    let host = host.clone();
    tokio::spawn(async move {
        if let Err(error) = shim.ended().await {
            let (namespace, vm_id) = (dir.namespace(), dir.vm_id());
            tracing::error!(
                namespace,
                vmID = vm_id,
                pid = shim.pid,
                "Cannot watch the shim: {error}"
            );
            return;
        }
        // First what is left of the VM: containerd is about to look for it too.
        let ended = (dir.clone(), child);
        clear(&host, dir).await;
        // Its end is read when the last writer, the shim, is gone.
        let _ = log.await;
        reap(&ended.0, ended.1);
    });
    words
}

fn reap(dir: &VmDir, child: Option<Child>) {
    let (namespace, vm_id) = (dir.namespace(), dir.vm_id());
    match child.map(|mut child| child.wait()) {
        None => tracing::info!(namespace, vmID = vm_id, "The shim has ended"),
        Some(Ok(status)) if status.success() => {
            tracing::info!(namespace, vmID = vm_id, "The shim has ended");
        }
        Some(Ok(status)) => {
            tracing::error!(namespace, vmID = vm_id, "The shim has ended: {status}");
        }
        Some(Err(error)) => {
            tracing::error!(
                namespace,
                vmID = vm_id,
                "The shim cannot be reaped: {error}"
            );
        }
    }
}

/// Clears what is left of a VM whose shim is dead; what cannot be cleared is logged.
async fn clear(host: &Host, dir: VmDir) {
    let (namespace, vm_id) = (dir.namespace().to_owned(), dir.vm_id().to_owned());
    let host = host.clone();
    if let Err(error) = blocking(move || Ok(bury(&host, &dir)?)).await {
        tracing::error!(namespace, vmID = vm_id, "{}", chain(&error));
    }
}
