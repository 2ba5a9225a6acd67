//! The client against a server that says what a VMM says.

use std::time::{Duration, Instant};

use crate::process::BOUND;
use crate::server::Server;
use fc_client::api::{BootSource, Drive, DriveUpdate, InstanceState, MachineConfig, Vsock};
use fc_client::{ApiError, Client};

const RUNNING: &str =
    r#"{"app_name":"Firecracker","id":"vm","state":"Running","vmm_version":"1.15.0","new":1}"#;

#[tokio::test]
async fn calls_are_what_the_api_describes() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("api.sock");
    let server = Server::start(&socket, |request| match request {
        "GET /" => (200, RUNNING),
        "GET /machine-config" => (
            200,
            r#"{"vcpu_count":2,"mem_size_mib":256,"smt":false,"track_dirty_pages":false}"#,
        ),
        "GET /balloon/statistics" => (
            200,
            r#"{"target_pages":1,"actual_pages":1,"target_mib":2,"actual_mib":3}"#,
        ),
        _ => (204, ""),
    });
    let client = Client::new(&socket);

    let mut machine = MachineConfig::new(2, 256);
    machine.smt = Some(false);
    client
        .put_machine_config(&machine)
        .await
        .expect("machine-config");
    let boot = BootSource {
        kernel_image_path: "/k".into(),
        initrd_path: None,
        boot_args: Some("a=b".into()),
    };
    client.put_boot_source(&boot).await.expect("boot-source");
    client
        .put_drive(&Drive::new("root_drive", "r", true))
        .await
        .expect("drive");
    client
        .patch_drive(&DriveUpdate::path("a/../b", "x"))
        .await
        .expect("drive update");
    let vsock = Vsock {
        guest_cid: 3,
        uds_path: "v".into(),
    };
    client.put_vsock(&vsock).await.expect("vsock");
    client.start_instance().await.expect("start");
    client.pause().await.expect("pause");
    assert_eq!(
        client
            .get_machine_config()
            .await
            .expect("machine-config")
            .vcpu_count,
        2
    );
    let statistics = client.balloon_statistics().await.expect("statistics");
    assert_eq!((statistics.actual_mib, statistics.free_memory), (3, None));
    let info = client.describe_instance().await.expect("info");
    assert_eq!(info.state, InstanceState::Running);

    let expected = [
        r#"PUT /machine-config {"vcpu_count":2,"mem_size_mib":256,"smt":false}"#,
        r#"PUT /boot-source {"kernel_image_path":"/k","boot_args":"a=b"}"#,
        r#"PUT /drives/root_drive {"drive_id":"root_drive","path_on_host":"r","is_root_device":false,"is_read_only":true}"#,
        r#"PATCH /drives/a%2F%2E%2E%2Fb {"drive_id":"a/../b","path_on_host":"x"}"#,
        r#"PUT /vsock {"guest_cid":3,"uds_path":"v"}"#,
        r#"PUT /actions {"action_type":"InstanceStart"}"#,
        r#"PATCH /vm {"state":"Paused"}"#,
        "GET /machine-config",
        "GET /balloon/statistics",
        "GET /",
    ];
    let requests = server.requests();
    assert_eq!(
        requests
            .iter()
            .map(|(_, line)| line.as_str())
            .collect::<Vec<_>>(),
        expected
    );
    assert!(
        requests.iter().all(|(connection, _)| *connection == 0),
        "one connection: {requests:?}"
    );
}

#[tokio::test]
async fn refusals_carry_the_vmms_words_and_state() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("api.sock");
    let _server = Server::start(&socket, |request| match request {
        "GET /" => (200, RUNNING),
        "GET /mmds" => (404, ""),
        "GET /balloon" => (200, "nonsense"),
        _ => (400, r#"{"fault_message":"No such\ndrive"}"#),
    });
    let client = Client::new(&socket);
    let error = client
        .patch_drive(&DriveUpdate::path("d", "x"))
        .await
        .expect_err("refused");
    assert_eq!(
        error.to_string(),
        "The VMM refused PATCH /drives/d (status 400, VM running): No such drive"
    );
    let error = client.get_mmds().await.expect_err("refused");
    assert!(
        matches!(error, ApiError::Refused { status: 404, .. }),
        "{error:?}"
    );
    let error = client.get_balloon().await.expect_err("not JSON");
    assert!(matches!(error, ApiError::BadAnswer { .. }), "{error:?}");
}

#[tokio::test]
async fn calls_are_bounded_and_recover() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("api.sock");
    let client = Client::new(&socket).with_bound(BOUND);
    let error = client.version().await.expect_err("no socket");
    assert!(matches!(error, ApiError::Connect { .. }), "{error:?}");

    let version = r#"{"firecracker_version":"1.15.0"}"#;
    let server = Server::start(&socket, move |request| match request {
        "GET /version" => (200, version),
        _ => (0, ""),
    });
    client.version().await.expect("the version");
    let start = Instant::now();
    let hasty = client.clone().with_bound(Duration::from_millis(500));
    let error = hasty.vm_config().await.expect_err("never answered");
    assert!(matches!(error, ApiError::TimedOut { .. }), "{error:?}");
    assert!(start.elapsed() < BOUND);
    client
        .version()
        .await
        .expect("the version, on a new connection");
    assert_eq!(
        server.requests().last().map(|(connection, _)| *connection),
        Some(1)
    );

    // The VMM is replaced. A call can still meet the closed connection, but not the one after it.
    drop(server);
    std::fs::remove_file(&socket).expect("removal");
    let _server = Server::start(&socket, move |_| (200, version));
    if client.version().await.is_err() {
        client.version().await.expect("the new VMM's version");
    }
}

#[tokio::test]
async fn what_is_not_answered_says_what_the_vm_was_doing() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("api.sock");
    let _server = Server::start(&socket, |request| match request {
        "GET /vm/config" => (0, ""),
        "GET /balloon" => (200, "nonsense"),
        _ => (204, ""),
    });
    let client = Client::new(&socket).with_bound(BOUND);
    let hasty = client.clone().with_bound(Duration::from_millis(200));
    let text = hasty.vm_config().await.expect_err("silence").to_string();
    assert_eq!(text, "The VMM did not answer GET /vm/config within 200ms");
    client.start_instance().await.expect("start");
    let text = hasty.vm_config().await.expect_err("silence").to_string();
    assert_eq!(
        text,
        "The VMM did not answer GET /vm/config (VM running) within 200ms"
    );
    client.pause().await.expect("pause");
    let text = client.get_balloon().await.expect_err("no JSON").to_string();
    assert_eq!(
        text,
        "The VMM's answer to GET /balloon (VM paused) makes no sense: \"nonsense\""
    );
    client.resume().await.expect("resume");

    // A call waits no longer for its turn than it would for its answer.
    let config = tokio::spawn(async move { client.vm_config().await });
    tokio::task::yield_now().await;
    let text = hasty.resume().await.expect_err("no turn").to_string();
    assert_eq!(
        text,
        "The VMM was busy with other calls for 200ms, so PATCH /vm (VM running) was not made"
    );
    config.abort();
}

#[tokio::test]
async fn what_writes_to_the_disk_has_more_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("api.sock");
    let _server = Server::start(&socket, |_| (0, ""));
    let hasty = Client::new(&socket).with_bound(Duration::from_millis(200));
    let (swapping, pausing) = (hasty.clone(), hasty.clone());
    let calls = [
        tokio::spawn(async move { swapping.patch_drive(&DriveUpdate::path("d", "x")).await }),
        tokio::spawn(async move { pausing.pause().await }),
    ];
    for slow in calls {
        tokio::task::yield_now().await;
        // Those with the client's own bound do not get their turn. By the second one's end it is over twice.
        for _ in 0..2 {
            let error = hasty.resume().await.expect_err("no turn");
            assert!(matches!(error, ApiError::Busy { .. }), "{error:?}");
        }
        assert!(!slow.is_finished(), "its bound is longer");
        slow.abort();
    }
}
