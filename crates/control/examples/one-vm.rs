//! Creates a VM through the control service, shows what it is, and stops it.
//!
//! ```text
//! cargo run --example one-vm -- /run/firecracker-containerd/control.sock
//! ```

use std::path::PathBuf;
use std::time::Duration;

use fc_proto::control::{
    CreateVMRequest, FirecrackerClient, FirecrackerMachineConfiguration, GetVMInfoRequest,
    StopVMRequest,
};
use fc_proto::protobuf::MessageField;
use fc_rpc::client::{connect, context};

const NAMESPACE: &str = "default";
const VM: &str = "example";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let socket = std::env::args_os().nth(1).map_or_else(
        || PathBuf::from("/run/firecracker-containerd/control.sock"),
        PathBuf::from,
    );
    let control = FirecrackerClient::new(connect(&socket).await?);

    // Whatever is not set is the configuration's.
    let request = CreateVMRequest {
        VMID: VM.to_owned(),
        MachineCfg: MessageField::some(FirecrackerMachineConfiguration {
            VcpuCount: 1,
            MemSizeMib: 128,
            ..FirecrackerMachineConfiguration::default()
        }),
        TimeoutSeconds: 60,
        ..CreateVMRequest::default()
    };
    // The namespace travels in the call's context. The bound is the client's own; CreateVM's is in the request.
    let minutes = Duration::from_secs(120);
    let created = control
        .create_vm(context(NAMESPACE, minutes), &request)
        .await?;
    println!(
        "Created VM {:?}; its VMM's API: {}",
        created.VMID, created.SocketPath
    );

    let request = GetVMInfoRequest {
        VMID: VM.to_owned(),
        ..GetVMInfoRequest::default()
    };
    let info = control
        .get_vm_info(context(NAMESPACE, minutes), &request)
        .await?;
    println!("vsock: {}", info.VSockPath);
    println!(
        "log: {}, metrics: {}",
        info.LogFifoPath, info.MetricsFifoPath
    );

    let request = StopVMRequest {
        VMID: VM.to_owned(),
        TimeoutSeconds: 10,
        ..StopVMRequest::default()
    };
    control
        .stop_vm(context(NAMESPACE, minutes), &request)
        .await?;
    println!("Stopped; VMM and shim are gone and the name is free");
    Ok(())
}
