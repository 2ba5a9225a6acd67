//! The runtime's own client understands every answer.

use std::path::Path;

use fc_client::api::{
    BootSource, Drive, DriveUpdate, InstanceState, Logger, MachineConfig, Metrics, Vsock,
};
use fc_client::{ApiError, Client};
use fc_conformance::vmm::{SOCKET, Vmm};

use crate::{OnBinary, file};

pub const CASES: &[(&str, OnBinary)] = &[("typed::calls_of_the_runtime", calls)];

fn calls(binary: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let vmm = Vmm::start(binary, directory.path(), &[]);
    file(directory.path(), "file", 512, 0);
    let client = Client::new(vmm.directory().join(SOCKET));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let outcome = runtime.block_on(as_the_runtime_does(&client));
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let refused = runtime.block_on(client.patch_drive(&DriveUpdate::path("root_drive", "file")));
    let Err(ApiError::Refused {
        status: 400,
        fault_message,
        state,
        ..
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!(
        fault_message,
        "The requested operation is not supported before starting the microVM."
    );
    assert_eq!(state, Some(InstanceState::NotStarted));
}

async fn as_the_runtime_does(client: &Client) -> Result<(), ApiError> {
    let info = client.describe_instance().await?;
    assert_eq!(
        (info.id.as_str(), info.state),
        ("conformance-1", InstanceState::NotStarted)
    );
    let version = client.version().await?;
    assert_eq!(version.firecracker_version, info.vmm_version);
    let logger = Logger {
        log_path: Some("log".into()),
        level: Some("Debug".into()),
        ..Logger::default()
    };
    client.put_logger(&logger).await?;
    let metrics = Metrics {
        metrics_path: "metrics".into(),
    };
    client.put_metrics(&metrics).await?;
    client
        .put_machine_config(&MachineConfig::new(2, 256))
        .await?;
    assert_eq!(client.get_machine_config().await?.vcpu_count, 2);
    let boot = BootSource {
        kernel_image_path: "file".into(),
        initrd_path: Some("file".into()),
        boot_args: Some("console=ttyS0".into()),
    };
    client.put_boot_source(&boot).await?;
    let mut root = Drive::new("root_drive", "file", true);
    root.is_root_device = true;
    client.put_drive(&root).await?;
    client
        .put_drive(&Drive::new("MN2HE43UOVRDA", "file", false))
        .await?;
    let vsock = Vsock {
        guest_cid: 3,
        uds_path: "vsock".into(),
    };
    client.put_vsock(&vsock).await?;
    client.put_entropy(&Default::default()).await?;
    let config = client.vm_config().await?;
    assert_eq!(config["drives"][1]["drive_id"], "MN2HE43UOVRDA");
    Ok(())
}
