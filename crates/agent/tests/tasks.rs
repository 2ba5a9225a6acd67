//! The agent with the real OCI runtime: life and death of containers and processes.

mod support;

use fc_proto::containerd::events::task::{TaskExit, TaskStart};
use fc_proto::protobuf::Message;
use fc_proto::task::api;
use fc_proto::ttrpc::Code;
use support::{Agent, code, context, exec_request, read_until, skipped};

const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;

#[tokio::test]
async fn a_container_runs_and_tells_its_status() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let streams = agent
        .create("c1", "echo out; echo err >&2; exit 42", false)
        .await;
    let state = agent.state("c1", "").await.unwrap();
    assert_eq!(format!("{:?}", state.status), "CREATED");
    let pid = agent.start_task("c1", "").await;
    assert_eq!(pid, state.pid);
    assert_eq!(agent.wait("c1", "").await, 42);
    let output = streams.finish().await;
    assert_eq!(output, ("out\n".to_owned(), "err\n".to_owned()));
    let state = agent.state("c1", "").await.unwrap();
    assert_eq!(
        (state.exit_status, state.stdout.as_str()),
        (42, "/host/stdout")
    );
    let deleted = agent.delete("c1", "").await.unwrap();
    assert_eq!((deleted.exit_status, deleted.pid), (42, pid));
    assert!(deleted.exited_at.seconds > 1_600_000_000);
    assert_eq!(code(&agent.delete("c1", "").await), Code::NOT_FOUND);
    // The rootfs was made by the "host", so it stays; config.json was the agent's.
    let bundle = agent.dir.path().join("container/c1");
    assert!(!bundle.join("config.json").exists() && bundle.join("rootfs/bin").exists());
    agent.shut_down().await;
}

#[tokio::test]
async fn events_come_in_order_with_namespace_and_statuses() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let streams = agent.create("c1", "exit 3", false).await;
    let pid = agent.start_task("c1", "").await;
    agent.wait("c1", "").await;
    agent.delete("c1", "").await.unwrap();
    drop(streams);
    let mut topics = Vec::new();
    for _ in 0..4 {
        let envelope = agent.event().await;
        assert_eq!(envelope.namespace, support::NAMESPACE);
        match envelope.topic.as_str() {
            "/tasks/start" => {
                let start = TaskStart::parse_from_bytes(&envelope.event.value).unwrap();
                assert_eq!((start.container_id.as_str(), start.pid), ("c1", pid));
            }
            "/tasks/exit" => {
                assert_eq!(envelope.event.type_url, "containerd.events.TaskExit");
                let exit = TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
                assert_eq!(
                    (exit.id.as_str(), exit.pid, exit.exit_status),
                    ("c1", pid, 3)
                );
            }
            _ => {}
        }
        topics.push(envelope.topic);
    }
    assert_eq!(
        topics,
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exit",
            "/tasks/delete"
        ]
    );
    agent.shut_down().await;
}

#[tokio::test]
async fn signals_reach_processes_and_running_tasks_are_not_deleted() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let mut streams = agent
        .create(
            "c1",
            "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done",
            false,
        )
        .await;
    agent.start_task("c1", "").await;
    read_until(&mut streams.stdout, "ready").await;
    assert_eq!(
        code(&agent.delete("c1", "").await),
        Code::FAILED_PRECONDITION
    );
    agent.kill("c1", "", SIGTERM, false).await.unwrap();
    assert_eq!(agent.wait("c1", "").await, 7);
    assert_eq!(
        code(&agent.kill("c1", "", SIGTERM, false).await),
        Code::NOT_FOUND
    );
    agent.delete("c1", "").await.unwrap();

    let streams = agent.create("c2", "sleep 100", false).await;
    agent.start_task("c2", "").await;
    agent.kill("c2", "", SIGKILL, true).await.unwrap();
    assert_eq!(agent.wait("c2", "").await, 137);
    agent.delete("c2", "").await.unwrap();
    drop(streams);
    agent.shut_down().await;
}

#[tokio::test]
async fn ids_are_checked_and_unique_and_a_created_task_can_be_deleted() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let streams = agent.create("c1", "exit 0", false).await;
    let ports = agent.free_ports();
    let mut request = api::CreateTaskRequest::new();
    request.id = "c1".to_owned();
    let again = agent.task.create(context(), &request).await;
    assert_eq!(code(&again), Code::ALREADY_EXISTS);
    request.id = "../x".to_owned();
    let bad = agent.task.create(context(), &request).await;
    assert_eq!(code(&bad), Code::INVALID_ARGUMENT);
    assert_eq!(code(&agent.state("none", "").await), Code::NOT_FOUND);
    assert_eq!(code(&agent.state("c1", "none").await), Code::NOT_FOUND);
    let exec = exec_request("c1", "e", "true", false, ports);
    let early = agent.task.exec(context(), &exec).await;
    assert_eq!(code(&early), Code::FAILED_PRECONDITION);
    assert_eq!(agent.delete("c1", "").await.unwrap().exit_status, 137);
    drop(streams);
    agent.shut_down().await;
}

#[tokio::test]
async fn a_failed_create_names_the_cause_and_leaves_the_id_free() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let ports = agent.ports();
    let mut request = agent.request("c1", "true", false, ports.base);
    let mut spec = support::spec("true", false);
    spec["process"]["args"] = serde_json::json!(["/no/such/program"]);
    let json = spec.to_string().into_bytes();
    request.options = Some(support::extra(ports.base, true, json, None)).into();
    let (failed, _streams) =
        tokio::join!(agent.task.create(context(), &request), ports.accept(false));
    let message = failed.unwrap_err().to_string();
    assert!(message.contains("/no/such/program"), "{message}");
    assert!(!agent.dir.path().join("container/c1/config.json").exists());
    std::fs::remove_dir_all(agent.dir.path().join("container/c1")).unwrap();
    let streams = agent.create("c1", "exit 5", false).await;
    agent.start_task("c1", "").await;
    assert_eq!(agent.wait("c1", "").await, 5);
    drop(streams);
    agent.delete("c1", "").await.unwrap();
    agent.shut_down().await;
}

#[tokio::test]
async fn execs_have_a_life_of_their_own() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let streams = agent.create("c1", "sleep 100", false).await;
    agent.start_task("c1", "").await;
    let exec = agent
        .exec("c1", "e1", "cat; echo done >&2; exit 9", false)
        .await;
    let mut exec = exec;
    let duplicate = exec_request("c1", "e1", "true", false, agent.free_ports());
    let duplicate = agent.task.exec(context(), &duplicate).await;
    assert_eq!(code(&duplicate), Code::ALREADY_EXISTS);
    let pid = agent.start_task("c1", "e1").await;

    let mut pids = api::PidsRequest::new();
    pids.id = "c1".to_owned();
    let pids = agent.task.pids(context(), &pids).await.unwrap();
    let ours = pids.processes.iter().find(|p| p.pid == pid).unwrap();
    assert_eq!(ours.info.type_url, "containerd.runc.v1.ProcessDetails");
    assert!(pids.processes.len() >= 2);

    exec.write("hello\n").await;
    assert_eq!(
        exec.finish().await,
        ("hello\n".to_owned(), "done\n".to_owned())
    );
    assert_eq!(agent.wait("c1", "e1").await, 9);
    assert_eq!(agent.delete("c1", "e1").await.unwrap().exit_status, 9);
    assert_eq!(code(&agent.state("c1", "e1").await), Code::NOT_FOUND);

    // An exec dies with its container, and that is known before the container's end is.
    let two = agent.exec("c1", "e2", "sleep 100", false).await;
    agent.start_task("c1", "e2").await;
    agent.kill("c1", "", SIGKILL, false).await.unwrap();
    assert_eq!(agent.wait("c1", "e2").await, 137);
    assert_eq!(agent.wait("c1", "").await, 137);
    let mut topics = Vec::new();
    for _ in 0..8 {
        let envelope = agent.event().await;
        let exit = TaskExit::parse_from_bytes(&envelope.event.value);
        let id = exit.map(|exit| exit.id).unwrap_or_default();
        topics.push(match envelope.topic.as_str() {
            "/tasks/exit" => format!("exit {id}"),
            topic => topic.to_owned(),
        });
    }
    let expected = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "exit e1",
        "/tasks/delete",
        "/tasks/exec-added",
        "/tasks/exec-started",
    ];
    assert_eq!(topics, expected);
    let last = [agent.event().await, agent.event().await];
    let ids = last.map(|e| TaskExit::parse_from_bytes(&e.event.value).unwrap().id);
    assert_eq!(ids, ["e2", "c1"]);
    agent.delete("c1", "").await.unwrap();
    drop(streams);
    drop(two);
    agent.shut_down().await;
}

#[tokio::test]
async fn a_container_can_be_paused() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let mut streams = agent
        .create("c1", "while :; do echo x; sleep 0.05; done", false)
        .await;
    agent.start_task("c1", "").await;
    read_until(&mut streams.stdout, "x").await;
    let mut pause = api::PauseRequest::new();
    pause.id = "c1".to_owned();
    agent.task.pause(context(), &pause).await.unwrap();
    let state = agent.state("c1", "").await.unwrap();
    assert_eq!(format!("{:?}", state.status), "PAUSED");
    let twice = agent.task.pause(context(), &pause).await;
    assert_eq!(code(&twice), Code::FAILED_PRECONDITION);
    let mut resume = api::ResumeRequest::new();
    resume.id = "c1".to_owned();
    agent.task.resume(context(), &resume).await.unwrap();
    read_until(&mut streams.stdout, "x").await;
    agent.kill("c1", "", SIGKILL, false).await.unwrap();
    assert_eq!(agent.wait("c1", "").await, 137);
    agent.delete("c1", "").await.unwrap();
    agent.shut_down().await;
}

#[tokio::test]
async fn shutdown_ends_what_still_runs() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let mut streams = agent.create("c1", "echo here; sleep 100", false).await;
    let pid = agent.start_task("c1", "").await;
    read_until(&mut streams.stdout, "here\n").await;
    // Somebody must read, or the agent waits its bound for it.
    let reading = tokio::spawn(streams.finish());
    agent.shut_down().await;
    assert_eq!(reading.await.unwrap().0, "");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
