//! What CreateVM and GetVMInfo answer: where a VM's sockets and FIFOs are.

use std::path::Path;

use fc_proto::control::{CreateVMResponse, GetVMInfoResponse};
use fc_vm::answer;
use fc_vm::dir;
use fc_vm::machine::Machine;

use crate::serve::shim::Shim;

/// The answer to CreateVM.
pub fn created(shim: &Shim, machine: &Machine) -> CreateVMResponse {
    answer::created(info(shim, machine), original(shim))
}

/// The answer to GetVMInfo.
pub fn info(shim: &Shim, machine: &Machine) -> GetVMInfoResponse {
    let (socket, vsock) = if original(shim) {
        (shim.dir.join(dir::API_SOCKET), shim.dir.join(dir::VSOCK))
    } else {
        (machine.api_socket(), machine.vsock())
    };
    GetVMInfoResponse {
        VMID: shim.dir.vm_id().to_owned(),
        SocketPath: text(&socket),
        VSockPath: text(&vsock),
        LogFifoPath: text(machine.log_fifo()),
        MetricsFifoPath: text(machine.metrics_fifo()),
        CgroupPath: machine.cgroup_path().unwrap_or_default().to_owned(),
        ..GetVMInfoResponse::default()
    }
}

/// Whether clients are to get the original's values, which lead nowhere for a jailed VM.
fn original(shim: &Shim) -> bool {
    shim.config.original_vm_info_paths
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
