//! Create: from a request to a container whose init waits for Start.

use std::sync::Arc;

use fc_proto::containerd::events::task::{TaskCreate, TaskIO};
use fc_proto::guest::{EXTRA_DATA_TYPE_URL, ExtraData};
use fc_proto::task::api::CreateTaskRequest;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use super::bundle::Bundle;
use super::error::TaskError;
use super::process::{Paths, Process};
use super::{Container, Env, Tasks, id, monitor};
use crate::cgroup::Cgroup;
use crate::events::topic;
use crate::oci::spec::Spec;
use crate::oci::{Launch, Started, user};
use crate::reaper::Watched;
use crate::stdio::{Pending, Ports};

impl Tasks {
    /// Creates a container. Returns its init's process id.
    pub(super) async fn create(
        self: &Arc<Self>,
        namespace: String,
        request: CreateTaskRequest,
    ) -> Result<u32, TaskError> {
        id::validate(&request.id)?;
        let reservation = Reservation::new(self, &request.id)?;
        let (container, init) = build(&self.env, namespace, &request).await?;
        let container = Arc::new(container);
        reservation.fill(&container);
        let pid = init.pid().as_raw().unsigned_abs();
        let mut event = TaskCreate::new();
        event.container_id = request.id;
        event.bundle = request.bundle;
        event.rootfs = request.rootfs;
        event.io = MessageField::some(task_io(&container.init));
        event.pid = pid;
        self.env
            .events
            .publish(&container.namespace, topic::CREATE, &event);
        // After the event, so that an exit cannot come before it.
        tokio::spawn(monitor::init(Arc::clone(self), container, init));
        Ok(pid)
    }
}

/// An id that nobody else can create meanwhile; given back on drop.
struct Reservation<'a> {
    tasks: &'a Tasks,
    id: &'a str,
}

impl<'a> Reservation<'a> {
    fn new(tasks: &'a Tasks, id: &'a str) -> Result<Self, TaskError> {
        let mut containers = tasks.containers();
        if containers.contains_key(id) {
            return Err(TaskError::TaskExists(id.to_owned()));
        }
        containers.insert(id.to_owned(), None);
        Ok(Self { tasks, id })
    }

    fn fill(self, container: &Arc<Container>) {
        let entry = Some(Arc::clone(container));
        self.tasks.containers().insert(self.id.to_owned(), entry);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut containers = self.tasks.containers();
        if matches!(containers.get(self.id), Some(None)) {
            containers.remove(self.id);
        }
    }
}

async fn build(
    env: &Env,
    namespace: String,
    request: &CreateTaskRequest,
) -> Result<(Container, Watched), TaskError> {
    let extra = extra_data(request.options.as_ref())?;
    if !request.checkpoint.is_empty() {
        return Err(TaskError::Unsupported(
            "Restoring a container from a checkpoint is not supported inside a VM",
        ));
    }
    let expected = env.bundles.join(&request.id);
    if std::path::Path::new(&request.bundle) != expected {
        return Err(TaskError::Bundle {
            expected,
            given: request.bundle.clone(),
        });
    }
    let paths = Paths {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
    };
    let ports = wanted_ports(&paths, request.terminal, &extra)?;
    let cgroup = format!("{}/{}", env.cgroup_parent, request.id);
    let spec = Spec::adapt(&extra.JsonSpec, &cgroup, &expected)?;
    let own_pid_namespace = spec.has_pid_namespace();
    // Early, so that an old host, which connects while it calls, finds the ports open.
    let pending = Pending::open(&env.transport, ports)?;
    let mut bundle = Bundle::make(expected)?;
    let rootfs = request.rootfs.clone();
    let (bundle, mounted) = blocking(move || {
        let mounted = bundle.mount_rootfs(&rootfs);
        (bundle, mounted)
    })
    .await;
    let started = match mounted {
        Ok(()) => launch(env, request, &bundle, spec, pending).await,
        Err(error) => Err(error),
    };
    let started = match started {
        Ok(started) => started,
        Err(cause) => {
            let failures = blocking(move || bundle.remove()).await;
            return Err(with_failures(cause, &failures));
        }
    };
    let init = Process::new(String::new(), request.terminal, paths);
    let pid = started.process.pid();
    let io = started.plumbing.start(&env.streams);
    init.launched(pid, io, started.terminal);
    let container = Container {
        id: request.id.clone(),
        namespace,
        bundle,
        init: Arc::new(init),
        execs: std::sync::Mutex::default(),
        own_pid_namespace,
        cgroup: Cgroup::of(pid),
    };
    Ok((container, started.process))
}

/// The steps after the root file system is there.
async fn launch(
    env: &Env,
    request: &CreateTaskRequest,
    bundle: &Bundle,
    mut spec: Spec,
    pending: Pending,
) -> Result<Started, TaskError> {
    if Bundle::is_guest_only(&request.rootfs) {
        user::resolve(&mut spec, &bundle.rootfs())?;
    }
    bundle.write_spec(&spec.to_json())?;
    let connections = pending.connections().await?;
    let launch = Launch::Container {
        bundle: bundle.dir(),
    };
    let started = env
        .runtime
        .launch(&request.id, launch, request.terminal, connections)
        .await?;
    Ok(started)
}

/// What the shim has put in place of the caller's options.
pub(super) fn extra_data(any: Option<&Any>) -> Result<ExtraData, TaskError> {
    let type_url = any.map_or("", |any| any.type_url.as_str());
    let name = type_url.rsplit('/').next().unwrap_or_default();
    match any {
        Some(any) if name == EXTRA_DATA_TYPE_URL => ExtraData::parse_from_bytes(&any.value)
            .map_err(|source| TaskError::Decode {
                what: "ExtraData",
                source,
            }),
        _ => Err(TaskError::NotExtraData(type_url.to_owned())),
    }
}

/// The ports of the streams that the caller wants.
pub(super) fn wanted_ports(
    paths: &Paths,
    terminal: bool,
    extra: &ExtraData,
) -> Result<Ports, TaskError> {
    let scheme = paths.stdout.split_once("://").map(|(scheme, _)| scheme);
    if matches!(scheme, Some("binary" | "file")) {
        return Err(TaskError::Unsupported(
            "Output to binary:// or file:// is not supported inside a VM",
        ));
    }
    let wanted = |path: &str, port: u32| (!path.is_empty() && port != 0).then_some(port);
    Ok(Ports {
        stdin: wanted(&paths.stdin, extra.StdinPort),
        stdout: wanted(&paths.stdout, extra.StdoutPort),
        // A terminal has one output.
        stderr: wanted(&paths.stderr, extra.StderrPort).filter(|_| !terminal),
        host_listens: extra.HostListens,
    })
}

/// `cause`, and what went wrong while its effects were undone.
fn with_failures(cause: TaskError, failures: &[String]) -> TaskError {
    if failures.is_empty() {
        return cause;
    }
    TaskError::Undo {
        code: cause.code(),
        cause: fc_errors::chain(&cause),
        failures: failures.join("; "),
    }
}

/// Runs `work`, which waits for a disk, beside the event loop.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn task_io(process: &Process) -> TaskIO {
    let mut io = TaskIO::new();
    io.stdin.clone_from(&process.paths.stdin);
    io.stdout.clone_from(&process.paths.stdout);
    io.stderr.clone_from(&process.paths.stderr);
    io.terminal = process.terminal;
    io
}
