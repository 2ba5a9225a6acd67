//! Waits for processes to end and makes it known.

use std::sync::Arc;
use std::time::Duration;

use fc_proto::containerd::events::task::{TaskExit, TaskOOM};
use protobuf::MessageField;
use tokio::time::timeout;

use super::process::Process;
use super::signal::SIGKILL;
use super::{Container, Tasks};
use crate::events::{timestamp, topic};
use crate::reaper::{Exit, Watched};
use crate::{debug, say};

/// Bound on the other processes' ends after they were killed with init. A process that the
/// kernel cannot kill (it waits for a broken disk, say) must not keep init's end a secret.
const OTHERS_BOUND: Duration = Duration::from_secs(10);

/// Follows a container's init to its end.
pub(super) async fn init(tasks: Arc<Tasks>, container: Arc<Container>, mut process: Watched) {
    let exit = tokio::select! {
        exit = process.exited() => exit,
        () = watch_memory(&tasks, &container) => process.exited().await,
    };
    // Without a pid namespace the other processes live on, which nobody expects of a container.
    if !container.own_pid_namespace
        && let Err(error) = tasks.env.runtime.kill_all(&container.id, SIGKILL).await
    {
        debug!("Cannot kill the rest of {}: {error}", container.id);
    }
    // They have ended; their ends are made known before init's.
    let others: Vec<_> = container.execs().values().cloned().collect();
    let ends = async {
        for other in others.iter().filter(|other| other.state().pid.is_some()) {
            other.wait().await;
        }
    };
    if timeout(OTHERS_BOUND, ends).await.is_err() {
        say!("Processes of {} outlive its init", container.id);
    }
    report_oom(&tasks, &container);
    ended(&tasks, &container, &container.init, exit).await;
}

/// Follows a further process of a container to its end.
pub(super) async fn exec(
    tasks: Arc<Tasks>,
    container: Arc<Container>,
    process: Arc<Process>,
    mut watched: Watched,
) {
    let exit = watched.exited().await;
    ended(&tasks, &container, &process, exit).await;
}

async fn ended(tasks: &Tasks, container: &Container, process: &Process, exit: Exit) {
    // Whoever starts it makes that known first.
    let _changing = process.changes.lock().await;
    process.exited(exit);
    let mut event = TaskExit::new();
    event.container_id.clone_from(&container.id);
    event.id.clone_from(if process.exec_id.is_empty() {
        &container.id
    } else {
        &process.exec_id
    });
    let pid = process.state().pid;
    event.pid = pid.map_or(0, |pid| pid.as_raw().unsigned_abs());
    event.exit_status = exit.status;
    event.exited_at = MessageField::some(timestamp(exit.at));
    tasks
        .env
        .events
        .publish(&container.namespace, topic::EXIT, &event);
}

/// Reports deaths from lack of memory as they happen; returns when they cannot be watched.
async fn watch_memory(tasks: &Tasks, container: &Container) {
    if let Some(cgroup) = &container.cgroup {
        let report = || report_oom(tasks, container);
        if let Err(error) = cgroup.watch_memory_events(report).await {
            // A kernel without the controller; deaths are then not told apart.
            debug!("Cannot watch the memory of {}: {error}", container.id);
        }
    }
}

fn report_oom(tasks: &Tasks, container: &Container) {
    let kills = container.cgroup.as_ref().map_or(0, |c| c.new_oom_kills());
    if kills > 0 {
        let mut event = TaskOOM::new();
        event.container_id.clone_from(&container.id);
        tasks
            .env
            .events
            .publish(&container.namespace, topic::OOM, &event);
    }
}
