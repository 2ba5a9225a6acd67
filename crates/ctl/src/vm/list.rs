//! `vm list`: every VM of the host, from what is on disk and what their shims say.

use std::time::Duration;

use fc_vm::list::{ShimState, Vm};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::error::CtlError;
use crate::host::{Host, status};
use crate::output::{ago, table};

/// How long all the shims together may take to answer.
const ANSWERS: Duration = Duration::from_secs(11);

/// A VM in the list.
#[derive(Serialize)]
struct Entry {
    namespace: String,
    id: String,
    /// The shim's word for it; `starting` or `ending` while nobody can be asked, `dead` for leftovers, `no answer`.
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    shim_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vmm_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mib: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tasks: Option<usize>,
    created_unix_ns: i64,
}

/// Lists all VMs. One whose shim hangs is listed too.
///
/// # Errors
/// When VMs cannot be looked for.
pub async fn run(host: &Host) -> Result<(), CtlError> {
    let mut asked = JoinSet::new();
    for vm in host.list()? {
        asked.spawn(entry(vm));
    }
    let mut entries = asked.join_all().await;
    entries.sort_by(|a, b| (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id)));
    host.output.print(&entries, |entries| text(entries));
    Ok(())
}

async fn entry(vm: Vm) -> Entry {
    let mut entry = Entry {
        namespace: vm.dir.namespace().to_owned(),
        id: vm.dir.vm_id().to_owned(),
        state: match vm.shim {
            ShimState::Alive(_) => "no answer",
            ShimState::Changing => "changing",
            ShimState::Dead => "dead",
        }
        .to_owned(),
        shim_pid: vm.shim().map(|shim| shim.pid),
        vmm_pid: None,
        vcpus: None,
        memory_mib: None,
        tasks: None,
        created_unix_ns: 0,
    };
    if vm.shim().is_none() {
        return entry;
    }
    if let Ok(Ok(status)) = tokio::time::timeout(ANSWERS, status(&vm)).await {
        entry.state = status.state;
        entry.vmm_pid = (status.vmm_pid != 0).then_some(status.vmm_pid);
        entry.vcpus = Some(status.vcpus);
        entry.memory_mib = Some(status.memory_mib);
        entry.tasks = Some(status.tasks.len());
        entry.created_unix_ns = status.created_unix_ns;
    }
    entry
}

fn text(entries: &[Entry]) -> String {
    let head = [
        "NAMESPACE",
        "VM",
        "STATE",
        "VCPUS",
        "MEMORY",
        "TASKS",
        "VMM PID",
        "AGE",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for vm in entries {
        rows.push(vec![
            vm.namespace.clone(),
            vm.id.clone(),
            vm.state.clone(),
            or_dash(vm.vcpus.map(|n| n.to_string())),
            or_dash(vm.memory_mib.map(|n| format!("{n} MiB"))),
            or_dash(vm.tasks.map(|n| n.to_string())),
            or_dash(vm.vmm_pid.map(|n| n.to_string())),
            ago(vm.created_unix_ns),
        ]);
    }
    let mut text = table(&rows);
    if entries.iter().any(|vm| vm.state == "dead") {
        text.push_str("Dead VMs are leftovers: `firecracker-ctl gc` removes them");
    }
    text
}
