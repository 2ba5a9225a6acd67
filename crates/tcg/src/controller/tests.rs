use super::*;
use crate::api::parse;

fn controller() -> Controller {
    Controller::new(
        "vm".into(),
        Mmds::new(51200),
        tsc::Mark::now(),
        mpsc::channel(1).0,
    )
}

async fn send(
    controller: &mut Controller,
    method: &str,
    path: &str,
    body: &str,
) -> Result<Reply, String> {
    let action = parse(method, path, body.as_bytes()).map_err(|fault| fault.to_string())?;
    controller
        .handle(action)
        .await
        .map_err(|fault| fault.to_string())
}

#[tokio::test]
async fn before_the_start() {
    let mut vm = controller();
    let Ok(Reply::Json(info)) = send(&mut vm, "GET", "/", "").await else {
        panic!()
    };
    assert_eq!(info["state"], "Not started");
    assert_eq!(info["id"], "vm");
    for (method, path, body) in [
        ("PATCH", "/vm", r#"{"state":"Paused"}"#),
        (
            "PATCH",
            "/drives/a",
            r#"{"drive_id":"a","path_on_host":"b"}"#,
        ),
        ("PUT", "/actions", r#"{"action_type":"FlushMetrics"}"#),
        ("PUT", "/actions", r#"{"action_type":"SendCtrlAltDel"}"#),
    ] {
        assert_eq!(
            send(&mut vm, method, path, body).await.unwrap_err(),
            "The requested operation is not supported before starting the microVM."
        );
    }
    assert_eq!(
        send(
            &mut vm,
            "PUT",
            "/actions",
            r#"{"action_type":"InstanceStart"}"#
        )
        .await
        .unwrap_err(),
        "Start microvm error: Cannot start microvm without kernel configuration."
    );
}

#[tokio::test]
async fn a_balloon_fits_into_the_memory() {
    let mut vm = controller();
    let body = |mib: u32| format!(r#"{{"amount_mib":{mib},"deflate_on_oom":true}}"#);
    assert_eq!(
        send(&mut vm, "GET", "/balloon", "").await.unwrap_err(),
        "Balloon config error: No balloon device found."
    );
    assert_eq!(
        send(&mut vm, "PUT", "/balloon", &body(129))
            .await
            .unwrap_err(),
        "Balloon config error: Amount of pages requested is too large."
    );
    send(&mut vm, "PUT", "/balloon", &body(128)).await.unwrap();
    let Ok(Reply::Json(balloon)) = send(&mut vm, "GET", "/balloon", "").await else {
        panic!()
    };
    assert_eq!(balloon["amount_mib"], 128);
    assert_eq!(balloon["stats_polling_interval_s"], 0);
    assert_eq!(
        send(
            &mut vm,
            "PATCH",
            "/machine-config",
            r#"{"mem_size_mib":64}"#
        )
        .await
        .unwrap_err(),
        "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size."
    );
    for (method, path, body) in [
        ("PATCH", "/balloon", r#"{"amount_mib":1}"#),
        (
            "PATCH",
            "/balloon/statistics",
            r#"{"stats_polling_interval_s":1}"#,
        ),
        ("GET", "/balloon/statistics", ""),
    ] {
        assert_eq!(
            send(&mut vm, method, path, body).await.unwrap_err(),
            "The requested operation is not supported before starting the microVM."
        );
    }
}

#[tokio::test]
async fn what_is_not_offered_is_refused() {
    let mut vm = controller();
    let error = send(&mut vm, "PUT", "/pmem/a", "{}").await.unwrap_err();
    assert_eq!(
        error,
        "The requested operation is not supported: PUT /pmem/a is not offered by firecracker-tcg."
    );
    let config: VmConfig = serde_json::from_str(
        r#"{"drives":[],"boot-source":{"kernel_image_path":"k"},"memory-hotplug":{}}"#,
    )
    .unwrap();
    assert!(
        vm.boot(config)
            .await
            .unwrap_err()
            .to_string()
            .contains("memory-hotplug")
    );
}

#[tokio::test]
async fn the_configuration_can_be_read_back() {
    let mut vm = controller();
    send(
        &mut vm,
        "PATCH",
        "/machine-config",
        r#"{"mem_size_mib":256}"#,
    )
    .await
    .unwrap();
    let body =
        r#"{"drive_id":"d","path_on_host":"/dev/null","is_root_device":true,"is_read_only":true}"#;
    send(&mut vm, "PUT", "/drives/d", body).await.unwrap();
    let Ok(Reply::Json(config)) = send(&mut vm, "GET", "/vm/config", "").await else {
        panic!()
    };
    assert_eq!(config["machine-config"]["mem_size_mib"], 256);
    assert_eq!(config["drives"][0]["cache_type"], "Unsafe");
    assert_eq!(config["drives"][0]["io_engine"], "Sync");
    assert_eq!(config["network-interfaces"], serde_json::json!([]));
}
