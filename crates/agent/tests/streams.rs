//! The agent with the real OCI runtime: streams between processes and the host.

mod support;

use std::time::Duration;

use fc_proto::guest::{
    AgentClient, IoAttachRequest, IoProxyClient, IoStateRequest, WaitProcessRequest,
};
use fc_proto::task::api;
use support::{Agent, context, read_to_end, read_until, skipped};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn eight_mebibytes_and_an_exit_arrive_completely() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let script = "dd if=/dev/zero bs=65536 count=128 2>/dev/null; echo end >&2; exit 6";
    let streams = agent.create("c1", script, false).await;
    agent.start_task("c1", "").await;
    // The host reads only after the process has written what fits and, at the end, is gone.
    let (mut stdout, stderr) = (streams.stdout, streams.stderr.unwrap());
    let mut total = 0;
    let mut buffer = vec![0; 100_000];
    while let Ok(count) = timeout(support::BOUND, stdout.read(&mut buffer))
        .await
        .unwrap()
    {
        if count == 0 {
            break;
        }
        assert!(buffer[..count].iter().all(|byte| *byte == 0));
        total += count;
    }
    assert_eq!(total, 8 * MIB);
    assert_eq!(read_to_end(stderr).await, "end\n");
    assert_eq!(agent.wait("c1", "").await, 6);
    agent.delete("c1", "").await.unwrap();
    agent.shut_down().await;
}

#[tokio::test]
async fn a_stream_that_the_host_does_not_read_stalls_no_other() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    // More than the pipe holds is on its way before the rest is written, which has no end.
    let script = "head -c 100000 /dev/zero; cat /dev/zero & echo still >&2; cat >&2";
    let mut streams = agent.create("c1", script, false).await;
    agent.start_task("c1", "").await;
    read_until(streams.stderr.as_mut().unwrap(), "still").await;
    streams.write("alive\n").await;
    read_until(streams.stderr.as_mut().unwrap(), "alive").await;
    agent.kill("c1", "", 9, false).await.unwrap();
    let request = WaitProcessRequest {
        container_id: "c1".to_owned(),
        ..WaitProcessRequest::default()
    };
    let client = AgentClient::new(agent.client.clone());
    let ended = client.wait_process(context(), &request);
    let ended = timeout(support::BOUND, ended).await.unwrap().unwrap();
    assert_eq!(ended.exit_status, 128 + 9);
    agent.delete("c1", "").await.unwrap();
    // Everything that was written before the end is still there to be read, and is what was told.
    let output = read_to_end(streams.stdout).await;
    assert!(output.len() > 64 * 1024, "{}", output.len());
    assert_eq!(ended.stdout_bytes, output.len() as u64);
    assert_eq!(ended.stderr_bytes, "still\nalive\n".len() as u64);
    agent.shut_down().await;
}

#[tokio::test]
async fn the_end_of_input_reaches_the_process() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    // By half close.
    let mut streams = agent.create("c1", "cat; echo over", false).await;
    agent.start_task("c1", "").await;
    streams.write("abc\n").await;
    streams.stdin.as_mut().unwrap().shutdown().await.unwrap();
    read_until(&mut streams.stdout, "abc\nover\n").await;
    assert_eq!(agent.wait("c1", "").await, 0);
    agent.delete("c1", "").await.unwrap();
    // By CloseIO alone.
    let mut streams = agent.create("c2", "cat; echo over", false).await;
    agent.start_task("c2", "").await;
    streams.write("def\n").await;
    let mut close = api::CloseIORequest::new();
    close.id = "c2".to_owned();
    close.stdin = true;
    agent.task.close_io(context(), &close).await.unwrap();
    read_until(&mut streams.stdout, "def\nover\n").await;
    assert_eq!(agent.wait("c2", "").await, 0);
    agent.delete("c2", "").await.unwrap();
    agent.shut_down().await;
}

#[tokio::test]
async fn a_terminal_has_a_size_and_both_directions() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let mut streams = agent
        .create("c1", "stty size; read line; echo got $line; exit 4", true)
        .await;
    let mut resize = api::ResizePtyRequest::new();
    resize.id = "c1".to_owned();
    (resize.width, resize.height) = (97, 31);
    agent.task.resize_pty(context(), &resize).await.unwrap();
    agent.start_task("c1", "").await;
    read_until(&mut streams.stdout, "31 97").await;
    streams.write("input\n").await;
    read_until(&mut streams.stdout, "got input").await;
    assert_eq!(agent.wait("c1", "").await, 4);
    streams.finish().await;

    agent.delete("c1", "").await.unwrap();
    agent.shut_down().await;
}

#[tokio::test]
async fn an_exec_can_have_a_terminal() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let streams = agent.create("c1", "sleep 100", false).await;
    agent.start_task("c1", "").await;
    let mut exec = agent
        .exec("c1", "e1", "stty -a; [ -t 0 ] && echo terminal", true)
        .await;
    agent.start_task("c1", "e1").await;
    read_until(&mut exec.stdout, "terminal").await;
    assert_eq!(agent.wait("c1", "e1").await, 0);
    drop(streams);
    agent.shut_down().await;
}

#[tokio::test]
async fn streams_go_over_new_connections_after_attach_and_lose_nothing() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let proxy = IoProxyClient::new(agent.client.clone());
    let mut streams = agent
        .create(
            "c1",
            "echo one; read x; echo two; read y; echo $x $y",
            false,
        )
        .await;
    agent.start_task("c1", "").await;
    read_until(&mut streams.stdout, "one").await;
    let mut state = IoStateRequest::new();
    state.ID = "c1".to_owned();
    assert!(proxy.state(context(), &state).await.unwrap().IsOpen);
    drop(streams.stdout);
    while proxy.state(context(), &state).await.unwrap().IsOpen {
        tokio::task::yield_now().await;
    }
    streams
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"a\n")
        .await
        .unwrap();
    let ports = agent.ports();
    let mut attach = IoAttachRequest::new();
    attach.ID = "c1".to_owned();
    attach.StdinPort = ports.base;
    attach.StdoutPort = ports.base + 1;
    attach.StderrPort = ports.base + 2;
    attach.HostListens = true;
    let (attached, new) = tokio::join!(proxy.attach(context(), &attach), ports.accept(false));
    attached.unwrap();
    let mut new = new;
    assert!(proxy.state(context(), &state).await.unwrap().IsOpen);
    new.write("b\n").await;
    assert_eq!(new.finish().await.0, "two\na b\n");
    assert_eq!(agent.wait("c1", "").await, 0);
    agent.delete("c1", "").await.unwrap();
    agent.shut_down().await;
}

#[tokio::test]
async fn an_old_host_connects_to_the_agents_ports() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let base = agent.free_ports();
    let mut request = agent.request("c1", "cat; echo err >&2", false, base);
    let json = support::spec("cat; echo err >&2", false)
        .to_string()
        .into_bytes();
    request.options = Some(support::extra(base, false, json, None)).into();
    let dial = async |port: u32| {
        let path = agent.dir.path().join(port.to_string());
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let (created, mut stdin, stdout, stderr) = tokio::join!(
        agent.task.create(context(), &request),
        dial(base),
        dial(base + 1),
        dial(base + 2),
    );
    created.unwrap();
    agent.start_task("c1", "").await;
    stdin.write_all(b"old\n").await.unwrap();
    drop(stdin);
    assert_eq!(read_to_end(stdout).await, "old\n");
    assert_eq!(read_to_end(stderr).await, "err\n");
    assert_eq!(agent.wait("c1", "").await, 0);
    agent.delete("c1", "").await.unwrap();
    agent.shut_down().await;
}

#[tokio::test]
async fn output_that_a_grandchild_holds_open_ends_after_the_grace() {
    if skipped() {
        return;
    }
    let agent = Agent::start().await;
    let streams = agent.create("c1", "sleep 100", false).await;
    agent.start_task("c1", "").await;
    let exec = agent
        .exec("c1", "e1", "sleep 60 & echo first; exit 0", false)
        .await;
    let started = Instant::now();
    agent.start_task("c1", "e1").await;
    assert_eq!(agent.wait("c1", "e1").await, 0);
    assert_eq!(exec.finish().await.0, "first\n");
    let took = started.elapsed();
    assert!(
        took >= Duration::from_secs(4) && took < Duration::from_secs(50),
        "{took:?}"
    );
    drop(streams);
    agent.shut_down().await;
}
