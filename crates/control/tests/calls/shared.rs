//! containerd's ttrpc address, shared between the daemon and containerd.

use fc_proto::containerd::shim::events::ForwardRequest;
use fc_proto::containerd::shim_async::EventsClient;
use fc_proto::control::{FirecrackerClient, VMStart};
use fc_proto::protobuf::MessageField;
use fc_proto::ttrpc::Code;
use fc_rpc::client::connect;
use fc_rpc::events::envelope;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::ends::containerd;
use crate::setup::*;

crate::tests!(
    our_service_is_ours_and_the_rest_is_containerds,
    messages_pass_untouched,
    containerds_own_socket_is_not_taken,
);

async fn sharing(setup: &Setup) -> Daemon {
    let mut command = setup.command();
    command
        .arg("--own-ttrpc-address")
        .arg(setup.path("containerd.sock.ttrpc"))
        .arg("--forward-to")
        .arg(setup.path("moved.sock"));
    let mut daemon = Daemon::start(command);
    daemon.logged("containerd.sock.ttrpc").await;
    daemon
}

/// One connection, calls to both sides.
async fn our_service_is_ours_and_the_rest_is_containerds() {
    let setup = Setup::new();
    let (_containerd, mut events) = containerd(&setup.path("moved.sock")).await;
    let _daemon = sharing(&setup).await;
    let shared = connect(&setup.path("containerd.sock.ttrpc"))
        .await
        .expect("a connection");
    let vm = FirecrackerClient::new(shared.clone());
    let created = vm
        .create_vm(ctx("ns"), &create("a"))
        .await
        .expect("CreateVM");
    assert_eq!(created.SocketPath, "ns/a");

    let payload = VMStart::default();
    let event = envelope("other", "/some/topic", "VMStart", &payload).expect("an event");
    let request = ForwardRequest {
        envelope: MessageField::some(event.clone()),
        ..ForwardRequest::default()
    };
    let forward = EventsClient::new(shared.clone());
    forward
        .forward(ctx("other"), &request)
        .await
        .expect("Forward");
    assert_eq!(events.recv().await, Some(event));

    assert_eq!(
        failed(vm.create_vm(ctx("ns"), &create("a")).await).0,
        Code::ALREADY_EXISTS
    );
    vm.stop_vm(ctx("ns"), &stop("a")).await.expect("StopVM");
    setup.expect_nothing(&setup.sockets("ns", "a"));
    // What containerd does not know, containerd says so.
    let other = fc_proto::vm::VmClient::new(shared);
    let (code, text) = failed(other.status(ctx("ns"), &Default::default()).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.contains("service does not exist"), "{text}");
}

/// A message: length, stream, type, flags, payload.
fn message(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len())
        .expect("short")
        .to_be_bytes()
        .to_vec();
    bytes.extend(stream.to_be_bytes());
    bytes.extend([kind, flags]);
    bytes.extend(payload);
    bytes
}

/// Streams, unknown services and types: whatever a newer containerd may say.
async fn messages_pass_untouched() {
    let setup = Setup::new();
    let moved = UnixListener::bind(setup.path("moved.sock")).expect("a socket");
    let _daemon = sharing(&setup).await;
    let mut client = UnixStream::connect(setup.path("containerd.sock.ttrpc"))
        .await
        .expect("a connection");
    // service "new.Streams", and fields that nobody knows here.
    let request = message(3, 1, 2, b"\x0a\x0bnew.Streams\x12\x01M\xfa\x3f\x02hi");
    let there = [
        request,
        message(3, 3, 0, &vec![7; 70_000]),
        message(3, 3, 1, b""),
        message(5, 9, 0xff, b"?"),
    ]
    .concat();
    client.write_all(&there).await.expect("written");
    let (mut containerd, _) = moved.accept().await.expect("a connection");
    let mut seen = vec![0; there.len()];
    containerd.read_exact(&mut seen).await.expect("read");
    assert!(seen == there, "the same bytes");

    let back = [message(3, 3, 0, b"answer"), message(3, 2, 0, b"\x0a\x00")].concat();
    containerd.write_all(&back).await.expect("written");
    let mut seen = vec![0; back.len()];
    client.read_exact(&mut seen).await.expect("read");
    assert_eq!(seen, back);

    // containerd's end is the end, as it would be without us in between.
    drop(containerd);
    assert_eq!(client.read(&mut [0; 1]).await.expect("the end"), 0);
}

async fn containerds_own_socket_is_not_taken() {
    let setup = Setup::new();
    let (_containerd, _events) = containerd(&setup.path("containerd.sock.ttrpc")).await;
    let mut command = setup.command();
    command
        .arg("--own-ttrpc-address")
        .arg(setup.path("containerd.sock.ttrpc"))
        .arg("--forward-to")
        .arg(setup.path("moved.sock"));
    let output = command.output().await.expect("the daemon");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("[ttrpc] address"), "{text}");
    assert!(connect(&setup.path("containerd.sock.ttrpc")).await.is_ok());
}
