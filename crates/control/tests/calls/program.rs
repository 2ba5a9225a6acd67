//! The daemon as a program: its start and what it refuses.

use std::os::unix::fs::PermissionsExt;

use crate::setup::*;

crate::tests!(
    a_bad_configuration_ends_the_start,
    two_daemons_do_not_fight,
    says_when_it_is_ready,
);

async fn refusal(setup: &Setup) -> String {
    let output = setup.command().output().await.expect("the daemon");
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn a_bad_configuration_ends_the_start() {
    let setup = Setup::new();
    let path = setup.path("config.json");
    std::fs::write(&path, "{\"vcpu_count\": 99}").expect("a file");
    let text = refusal(&setup).await;
    assert!(text.contains("vcpu_count") && text.contains("99"), "{text}");
    std::fs::remove_file(&path).expect("removed");
    let text = refusal(&setup).await;
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(!setup.path("control.sock").exists());
}

async fn two_daemons_do_not_fight() {
    let setup = Setup::new();
    let _first = setup.daemon().await;
    let text = refusal(&setup).await;
    assert!(
        text.contains("Another firecracker-control serves"),
        "{text}"
    );
    let mode = std::fs::metadata(setup.path("control.sock"));
    assert_eq!(
        mode.expect("the socket").permissions().mode() & 0o777,
        0o600
    );
    let vm = setup.client().await.client;
    vm.create_vm(ctx("ns"), &create("a"))
        .await
        .expect("the first one serves on");
    vm.stop_vm(ctx("ns"), &stop("a")).await.expect("StopVM");
}

async fn says_when_it_is_ready() {
    let setup = Setup::new();
    let path = setup.path("notify");
    let manager = tokio::net::UnixDatagram::bind(&path).expect("a socket");
    let mut command = setup.command();
    let _daemon = command
        .env("NOTIFY_SOCKET", &path)
        .spawn()
        .expect("the daemon");
    let mut buffer = [0; 64];
    let n = tokio::time::timeout(BOUND, manager.recv(&mut buffer)).await;
    let n = n.expect("a message").expect("a message");
    assert_eq!(&buffer[..n], b"READY=1");
    assert!(setup.client().await.own.is_none());
}
