//! What a VM's creator is told, by its shim and by the control service alike.

use fc_proto::control::{CreateVMResponse, GetVMInfoResponse};

/// CreateVM's answer for a VM that runs, from GetVMInfo's. `original` (config's `original_vm_info_paths`): as
/// firecracker-containerd gives it, which never fills in the FIFOs' paths.
#[must_use]
pub fn created(info: GetVMInfoResponse, original: bool) -> CreateVMResponse {
    let fifo = |path| if original { String::new() } else { path };
    CreateVMResponse {
        VMID: info.VMID,
        SocketPath: info.SocketPath,
        LogFifoPath: fifo(info.LogFifoPath),
        MetricsFifoPath: fifo(info.MetricsFifoPath),
        CgroupPath: info.CgroupPath,
        ..CreateVMResponse::default()
    }
}
