//! What the agent does beyond the original's: numbered events, further connections, export.

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use fc_proto::guest::{
    AgentClient, CONTROL_PORT, ConfigureRequest, ExportUpperRequest, NextEventRequest,
    NextEventResponse, feature,
};
use fc_proto::ttrpc::Code;
use support::{Agent, BOUND, code, connect, context, listen, skipped};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

async fn next(agent: &AgentClient, after: u64) -> NextEventResponse {
    let request = NextEventRequest {
        after,
        ..NextEventRequest::default()
    };
    let answer = timeout(BOUND, agent.next_event(context(), &request)).await;
    answer.expect("an event in time").unwrap()
}

#[tokio::test]
async fn events_outlive_the_connection() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let streams = agent.create("c1", "exit 3", false).await;
    agent.start_task("c1", "").await;
    assert_eq!(agent.wait("c1", "").await, 3);
    drop(streams);
    let first = AgentClient::new(connect(agent.dir.path()).await);
    let create = next(&first, 0).await;
    assert_eq!((create.number, create.topic.as_str()), (1, "/tasks/create"));
    assert_eq!(create.namespace, support::NAMESPACE);
    assert_eq!(next(&first, 1).await.topic, "/tasks/start");
    drop(first);

    // The new connection goes on where the host was, whatever the old one had got.
    let second = AgentClient::new(connect(agent.dir.path()).await);
    let again = next(&second, 1).await;
    assert_eq!((again.number, again.topic.as_str()), (2, "/tasks/start"));
    let exit = next(&second, 2).await;
    assert_eq!(
        (exit.number, exit.topic.as_str(), exit.lost),
        (3, "/tasks/exit", 0)
    );
    assert!(exit.timestamp.seconds >= create.timestamp.seconds);
    // The original's poll gives out the same events.
    assert_eq!(agent.event().await.topic, "/tasks/exit");

    let future = NextEventRequest {
        after: 99,
        ..NextEventRequest::default()
    };
    let future = second.next_event(context(), &future).await;
    assert_eq!(code(&future), Code::INVALID_ARGUMENT);
    agent.delete("c1", "").await.unwrap();
    assert_eq!(next(&second, 3).await.topic, "/tasks/delete");
    agent.shut_down().await;
}

#[tokio::test]
async fn a_half_dead_connection_is_in_nobody_s_way() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let control = agent.dir.path().join(CONTROL_PORT.to_string());
    // One that stopped within a message, one that never reads, one that waits for an event.
    let mut torn = UnixStream::connect(&control).await.unwrap();
    torn.write_all(&[0, 0, 1, 0]).await.unwrap();
    let waits = AgentClient::new(connect(agent.dir.path()).await);
    let waiting = tokio::spawn(async move { next(&waits, 0).await });
    let deaf = UnixStream::connect(&control).await.unwrap();

    let client = AgentClient::new(connect(agent.dir.path()).await);
    let request = ConfigureRequest {
        vm_id: "vm".to_owned(),
        ..ConfigureRequest::default()
    };
    for _ in 0..2 {
        let configured = timeout(BOUND, client.configure(context(), &request)).await;
        let configured = configured.expect("an answer in time").unwrap();
        assert!(
            configured
                .features
                .contains(&feature::NUMBERED_EVENTS.to_owned())
        );
        assert!(
            configured
                .features
                .contains(&feature::EXPORT_UPPER.to_owned())
        );
    }
    let streams = agent.create("c1", "true", false).await;
    assert_eq!(next(&client, 0).await.number, 1);
    assert_eq!(waiting.await.unwrap().number, 1);
    drop((torn, deaf, streams));
    agent.shut_down().await;
}

fn export_of(id: &str, port: u32) -> ExportUpperRequest {
    ExportUpperRequest {
        container_id: id.to_owned(),
        port,
        ..ExportUpperRequest::default()
    }
}

#[tokio::test]
async fn what_a_container_wrote_is_exported_while_it_rests() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let client = AgentClient::new(agent.client.clone());
    let streams = agent.create("c1", "cat", false).await;
    let upper = agent.dir.path().join("container/c1/disk/upper");
    fs::create_dir_all(&upper).unwrap();
    // More than a connection holds, so that the agent has to wait for us.
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1] | 1).collect();
    fs::write(upper.join("data"), &data).unwrap();
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o711)).unwrap();
    nix::unistd::mkfifo(&upper.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let port = agent.free_ports();
    let listener = listen(agent.dir.path(), port);
    agent.start_task("c1", "").await;
    let running = client.export_upper(context(), &export_of("c1", port)).await;
    assert_eq!(code(&running), Code::FAILED_PRECONDITION, "{running:?}");
    drop(streams);
    agent.wait("c1", "").await;

    let receive = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut archive = Vec::new();
        let mut buffer = vec![0; 8192];
        // Two blocks of zeros end it; then it is ours to close.
        while !archive.ends_with(&[0; 1024]) {
            let count = connection.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0, "the stream ends early");
            archive.extend_from_slice(&buffer[..count]);
        }
        archive
    };
    let request = export_of("c1", port);
    let exporting = client.export_upper(context(), &request);
    let (exported, archive) = timeout(BOUND, async { tokio::join!(exporting, receive) })
        .await
        .expect("an export in time");
    let exported = exported.unwrap();
    assert_eq!(exported.skipped, ["/fifo: FIFOs are not exported"]);
    assert_eq!(exported.skipped_count, 1);
    let mut archive = tar::Archive::new(archive.as_slice());
    let mut names = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        names.push(entry.path().unwrap().display().to_string());
        match names.last().unwrap().as_str() {
            "data" => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                assert!(content == data, "the data differs");
            }
            _ => assert_eq!(entry.header().mode().unwrap(), 0o711),
        }
    }
    assert_eq!(names, [".", "data"]);

    for (id, wanted) in [
        ("c2", Code::NOT_FOUND),
        ("../c1", Code::INVALID_ARGUMENT),
        ("", Code::INVALID_ARGUMENT),
    ] {
        let refused = client.export_upper(context(), &export_of(id, port)).await;
        assert_eq!(code(&refused), wanted, "{id:?}: {refused:?}");
    }
    let nobody = client
        .export_upper(context(), &export_of("c1", agent.free_ports()))
        .await;
    assert_eq!(code(&nobody), Code::UNAVAILABLE);
    fs::remove_dir_all(upper.parent().unwrap()).unwrap();
    agent.delete("c1", "").await.unwrap();
    agent.shut_down().await;
}
