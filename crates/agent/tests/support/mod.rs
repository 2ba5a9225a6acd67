//! Runs the agent's binary on this machine, with Unix sockets for ports and the real OCI runtime.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test program uses a part of it"
)]

mod requests;
mod streams;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use fc_proto::containerd::shim::event::Envelope;
use fc_proto::guest::{
    ANNOUNCE_PORT, Announcement, CONTROL_PORT, EVENT_GETTER_METHOD, EVENT_GETTER_SERVICE,
    STDIO_PORT_BASE,
};
use fc_proto::protobuf::MessageField;
use fc_proto::task::{TaskClient, api, call};
use fc_proto::ttrpc::asynchronous::Client;
use fc_proto::ttrpc::context::Context;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::time::timeout;

pub use requests::{exec_request, extra, spec};
pub use streams::{Ports, Streams, read_to_end, read_until};

/// Nothing in these tests takes long; this ends one that hangs.
pub const BOUND: Duration = Duration::from_secs(60);

/// Namespace of all calls.
pub const NAMESPACE: &str = "test-ns";

/// The agent's process; killed when a test fails half way.
pub struct Reaped {
    process: Option<Child>,
    cgroup_parent: String,
}

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.process {
            // SIGTERM: it then ends its containers.
            let pid = i32::try_from(child.id()).unwrap();
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGTERM,
            );
            let _ = child.wait();
        }
        for root in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
            let _ = fs::remove_dir(format!("{root}{}", self.cgroup_parent));
        }
    }
}

/// A running agent with a directory of its own.
pub struct Agent {
    // Before the directory, which it still needs to end.
    pub child: Reaped,
    pub dir: tempfile::TempDir,
    pub client: Client,
    pub task: TaskClient,
    next_port: AtomicU32,
}

/// Why the tests that need containers cannot run here, printed.
pub fn skipped() -> bool {
    let reason = if !nix::unistd::geteuid().is_root() {
        "containers need root"
    } else if !Path::new("/usr/bin/crun").exists() {
        "crun is not installed"
    } else if !Path::new("/bin/busybox").exists() && !Path::new("/usr/bin/busybox").exists() {
        "busybox (static) is not installed"
    } else {
        return false;
    };
    println!("SKIPPED: {reason}");
    true
}

impl Agent {
    /// Starts the agent and waits for its announcement.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let announcements = listen(dir.path(), ANNOUNCE_PORT);
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        let cgroup_parent = format!("/fc-agent-test-{}", name.trim_start_matches('.'));
        // As in a VM: one cgroup hierarchy, of version 2. On this machine it may be another.
        let script = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"";
        let child = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .arg(env!("CARGO_BIN_EXE_firecracker-agent"))
            .arg("-test-unix-dir")
            .arg(dir.path())
            .args(["-cgroup-parent", &cgroup_parent])
            .args(["-debug", "-runtime", "crun"])
            .args(["-runtime-arg", "--cgroup-manager=cgroupfs"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (connection, _) = timeout(BOUND, announcements.accept())
            .await
            .expect("an announcement")
            .unwrap();
        let mut line = String::new();
        BufReader::new(connection)
            .read_line(&mut line)
            .await
            .unwrap();
        let announcement: Announcement = serde_json::from_str(line.trim()).unwrap();
        assert_eq!(announcement.error, None);
        let client = connect(dir.path()).await;
        Self {
            task: TaskClient::new(client.clone()),
            client,
            child: Reaped {
                process: Some(child),
                cgroup_parent,
            },
            dir,
            next_port: AtomicU32::new(STDIO_PORT_BASE),
        }
    }

    /// Makes the bundle of a container with busybox in its rootfs.
    pub fn bundle(&self, id: &str) -> PathBuf {
        let bundle = self.dir.path().join("container").join(id);
        for name in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
            fs::create_dir_all(bundle.join("rootfs").join(name)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .unwrap();
        fs::copy(busybox, bundle.join("rootfs/bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "sleep", "stty", "head", "echo", "true", "dd", "id",
        ] {
            std::os::unix::fs::symlink("busybox", bundle.join("rootfs/bin").join(applet)).unwrap();
        }
        bundle
    }

    /// Three ports on which the host listens.
    pub fn ports(&self) -> Ports {
        let base = self.next_port.fetch_add(3, Ordering::Relaxed);
        let listen = |offset| listen(self.dir.path(), base + offset);
        Ports {
            base,
            stdin: listen(0),
            stdout: listen(1),
            stderr: listen(2),
        }
    }

    /// Three ports on which nobody listens.
    pub fn free_ports(&self) -> u32 {
        self.next_port.fetch_add(3, Ordering::Relaxed)
    }

    /// A Create request for a container that runs `script` in a shell, with all streams.
    pub fn request(
        &self,
        id: &str,
        script: &str,
        terminal: bool,
        base: u32,
    ) -> api::CreateTaskRequest {
        let bundle = self.bundle(id);
        let mut request = api::CreateTaskRequest::new();
        request.id = id.to_owned();
        request.bundle = bundle.display().to_string();
        request.terminal = terminal;
        request.stdin = "/host/stdin".to_owned();
        request.stdout = "/host/stdout".to_owned();
        if !terminal {
            request.stderr = "/host/stderr".to_owned();
        }
        let json = spec(script, terminal).to_string().into_bytes();
        request.options = MessageField::some(extra(base, true, json, None));
        request
    }

    /// Creates a container with connected streams.
    pub async fn create(&self, id: &str, script: &str, terminal: bool) -> Streams {
        let ports = self.ports();
        let request = self.request(id, script, terminal, ports.base);
        let context = context();
        let (created, streams) = tokio::join!(
            timeout(BOUND, self.task.create(context, &request)),
            timeout(BOUND, ports.accept(terminal)),
        );
        assert!(created.expect("in time").expect("created").pid > 0);
        streams.expect("connections")
    }

    /// Starts a container or exec.
    pub async fn start_task(&self, id: &str, exec_id: &str) -> u32 {
        let mut request = api::StartRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.task.start(context(), &request).await.unwrap().pid
    }

    /// Adds an exec that runs `script` in a shell.
    pub async fn exec(&self, id: &str, exec_id: &str, script: &str, terminal: bool) -> Streams {
        let ports = self.ports();
        let request = exec_request(id, exec_id, script, terminal, ports.base);
        let (added, streams) = tokio::join!(
            self.task.exec(context(), &request),
            timeout(BOUND, ports.accept(terminal)),
        );
        added.expect("added");
        streams.expect("connections")
    }

    /// Waits for an end and returns the status.
    pub async fn wait(&self, id: &str, exec_id: &str) -> u32 {
        let mut request = api::WaitRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        let answer = timeout(BOUND, self.task.wait(context(), &request)).await;
        answer.expect("an end in time").unwrap().exit_status
    }

    pub async fn kill(
        &self,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> fc_proto::ttrpc::Result<api::Empty> {
        let mut request = api::KillRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal;
        request.all = all;
        self.task.kill(context(), &request).await
    }

    pub async fn delete(
        &self,
        id: &str,
        exec_id: &str,
    ) -> fc_proto::ttrpc::Result<api::DeleteResponse> {
        let mut request = api::DeleteRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.task.delete(context(), &request).await
    }

    pub async fn state(
        &self,
        id: &str,
        exec_id: &str,
    ) -> fc_proto::ttrpc::Result<api::StateResponse> {
        let mut request = api::StateRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.task.state(context(), &request).await
    }

    /// Polls for one event.
    pub async fn event(&self) -> Envelope {
        let empty = api::Empty::new();
        let poll = call(
            &self.client,
            context(),
            EVENT_GETTER_SERVICE,
            EVENT_GETTER_METHOD,
            &empty,
        );
        timeout(BOUND, poll).await.expect("an event").unwrap()
    }

    /// Asks the agent to end and checks that it does.
    pub async fn shut_down(mut self) {
        let request = api::ShutdownRequest::new();
        let answer = timeout(BOUND, self.task.shutdown(context(), &request)).await;
        answer.expect("an answer in time").unwrap();
        let mut child = self.child.process.take().unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait())
            .await
            .unwrap()
            .unwrap();
        assert!(status.success(), "{status}");
    }
}

pub fn listen(dir: &Path, port: u32) -> UnixListener {
    UnixListener::bind(dir.join(port.to_string())).unwrap()
}

pub async fn connect(dir: &Path) -> Client {
    let address = format!("unix://{}/{CONTROL_PORT}", dir.display());
    Client::connect(&address).await.unwrap()
}

pub fn context() -> Context {
    let mut context = Context::default();
    context.set(
        "containerd-namespace-ttrpc".to_owned(),
        vec![NAMESPACE.to_owned()],
    );
    context
}

pub fn code(result: &fc_proto::ttrpc::Result<impl Sized>) -> fc_proto::ttrpc::Code {
    match result {
        Err(fc_proto::ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("{error}"),
        Ok(_) => fc_proto::ttrpc::Code::OK,
    }
}
