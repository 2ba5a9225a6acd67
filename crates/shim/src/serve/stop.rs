//! The VM's end, asked for or not, and what it takes with it.

use std::sync::Arc;
use std::time::Duration;

use fc_client::VmmEnd;
use fc_errors::chain;
use fc_proto::containerd::events::task::TaskExit;
use fc_proto::protobuf::MessageField;
use fc_proto::task::api::Status;
use fc_vm::state;
use tokio::task::JoinSet;

use super::error::{CallError, StartError};
use super::life::Origin;
use super::process::{Exit, Process};
use super::shim::{Phase, Running, Shim};

/// Bound on a stop when the caller names none.
pub const DEFAULT_BOUND: Duration = Duration::from_secs(5);
/// Bound on the stop that a task's Shutdown means: containerd waits 3 s for its answer.
pub const SHUTDOWN_BOUND: Duration = Duration::from_millis(2500);
/// How long clients may keep their connections after the shim's work is done: those that have their last
/// answer yet to read close them, and containerd keeps its own for as long as it has a task here.
pub const LAST_ANSWER_BOUND: Duration = Duration::from_millis(500);
/// How long containerd may take over the last events, which are lost with the shim. With [`DELETE_BOUND`] less than who
/// asked for the VM's end, or starts its successor, waits for the shim's.
pub const FLUSH_BOUND: Duration = Duration::from_secs(10);
/// How long containerd may take to say Shutdown after a task's end.
const SHUTDOWN_EXPECTED_BOUND: Duration = Duration::from_secs(10);
/// How long tasks of a VM that has ended may stay to be deleted. A client that comes later gets an error in place of
/// their exit status.
const DELETE_BOUND: Duration = Duration::from_secs(10);
/// How long a Create whose VM has failed may take until it is answered: it may be preparing an image.
const CREATE_BOUND: Duration = Duration::from_secs(60);
/// How long the reason of a failed start is kept for somebody to ask.
const FAILURE_BOUND: Duration = Duration::from_secs(20);

/// Ends the VM and waits until nothing of it is left but this process. One that is still on its way is
/// given up: nothing runs in it yet.
///
/// # Errors
/// When the VMM had to be killed; the VM has ended all the same.
pub async fn stop(shim: &Shim, bound: Duration) -> Result<(), CallError> {
    shim.tasks.close();
    let result = match shim.phase() {
        // Nobody can ask for it any more.
        Phase::Waiting if shim.claim_creation() => {
            clean(shim).await;
            shim.set_phase(Phase::Failed(Arc::new(StartError::Stopped)));
            shim.end();
            Ok(())
        }
        Phase::Waiting | Phase::Booting => {
            shim.cancel_start();
            // It may have come up in this moment.
            match shim.vm().await {
                Ok(running) => running.machine.stop(bound).await,
                Err(_) => Ok(()),
            }
        }
        Phase::Running(running) => running.machine.stop(bound).await,
        Phase::Failed(_) | Phase::Gone(_) => Ok(()),
    };
    shim.gone().await;
    if let Phase::Failed(_) = shim.phase() {
        // The reason is known before the directory is gone, and kept for somebody who asks. Nobody will.
        shim.tell_failure();
        shim.ended().await;
    }
    result.map_err(|source| CallError::Forced {
        vm_id: shim.dir.vm_id().to_owned(),
        source,
    })
}

/// Ends a VM that nobody knows of: there is nothing in it to be ended in good order.
pub async fn discard(shim: &Shim) {
    tracing::warn!("Nobody waits for the VM any more, so it ends");
    if let Err(error) = stop(shim, Duration::ZERO).await {
        tracing::debug!("{}", chain(&error));
    }
}

/// Whether a VM that ends with its last task has none; it takes no more tasks then.
pub fn is_idle(shim: &Shim, running: &Running) -> bool {
    running.machine.spec().exit_after_all_tasks && shim.tasks.close_if_empty()
}

/// After a task's end: containerd says Shutdown next, unless it was killed meanwhile or its
/// client gave up. A VM that is to end with its last task does not wait for that for ever.
pub fn expect_shutdown(shim: &Arc<Shim>, running: &Arc<Running>) {
    if !running.machine.spec().exit_after_all_tasks {
        return;
    }
    let shim = Arc::clone(shim);
    let running = Arc::downgrade(running);
    tokio::spawn(async move {
        tokio::time::sleep(SHUTDOWN_EXPECTED_BOUND).await;
        let idle = running.upgrade().is_some_and(|r| is_idle(&shim, &r));
        if idle && let Err(error) = stop(&shim, DEFAULT_BOUND).await {
            tracing::warn!("{}", chain(&error));
        }
    });
}

/// What the end of the VMM leaves to be done: news for whoever waits, and an empty host.
pub async fn after_end(shim: &Arc<Shim>, running: &Running, end: &VmmEnd) {
    shim.tasks.close();
    let tasks = shim.tasks.all();
    if tasks.is_empty() {
        tracing::info!("The VM has ended ({})", end.status);
    } else {
        tracing::warn!("The VM ended under its tasks: {end}");
    }
    shim.timeline.vm("vm_stopped");
    let pid = running.machine.vmm_pid();
    let mut awaited = false;
    let mut ends = JoinSet::new();
    for process in tasks.iter().flat_map(|task| task.processes()) {
        awaited |= process.is_awaited();
        let exit = publish_end(shim, &process, pid);
        // The last words, which explain a VM's end best, are here and have yet to be read.
        ends.spawn(async move { process.ended(exit, None).await });
    }
    shim.events
        .vm_stopped(shim.dir.namespace(), shim.dir.vm_id());
    for error in running.machine.close().await {
        tracing::error!("{}", chain(&error));
    }
    clean(shim).await;
    shim.set_phase(Phase::Gone(running.machine.console()));
    ends.join_all().await;
    if awaited {
        // Whoever waits learns of the tasks' ends now, and deletes them.
        let _ = tokio::time::timeout(DELETE_BOUND, shim.tasks.empty()).await;
    }
    shim.end();
}

/// What a start that failed leaves to be done. The shim stays until somebody was told why.
pub async fn after_failure(shim: &Arc<Shim>, error: StartError, origin: Origin) {
    tracing::error!("The VM did not start: {}", chain(&error));
    let known = origin == Origin::Call || matches!(error, StartError::Stopped);
    // First, so that the same id can be used again once the caller is told.
    let cleaned = known && clean(shim).await;
    shim.set_phase(Phase::Failed(Arc::new(error)));
    if !known {
        let _ = tokio::time::timeout(FAILURE_BOUND, shim.failure_told()).await;
    }
    shim.tasks.close();
    let _ = tokio::time::timeout(CREATE_BOUND, shim.tasks.empty()).await;
    // Once only: a directory that is there now is another shim's.
    if !cleaned {
        clean(shim).await;
    }
    shim.end();
}

/// A process whose VM is gone: it was killed, as far as anybody can tell, unless its end is known. containerd
/// learns of its end now, if it has not yet. Returns it.
fn publish_end(shim: &Shim, process: &Process, pid: u32) -> Exit {
    let known = process.known_exit().cloned();
    let ran = known.is_some() || process.status() != Status::CREATED;
    let exit = known.unwrap_or_else(Exit::killed);
    if !ran || process.published().is_some() {
        return exit;
    }
    process.set_published(exit.clone());
    let id = if process.exec_id.is_empty() {
        &process.task_id
    } else {
        &process.exec_id
    };
    let event = TaskExit {
        container_id: process.task_id.clone(),
        id: id.clone(),
        pid,
        exit_status: exit.status,
        exited_at: MessageField::some(exit.at.clone()),
        ..TaskExit::default()
    };
    shim.events
        .publish("/tasks/exit", "containerd.events.TaskExit", &event);
    exit
}

/// Removes the VM's sockets and directory. The lock goes last, with the directory. Whether the directory is gone.
async fn clean(shim: &Shim) -> bool {
    let dir = shim.dir.clone();
    // A VMM or a jail that does not end at once is waited for, and the shim has one thread to answer with.
    match tokio::task::spawn_blocking(move || state::undo(&dir)).await {
        Ok(errors) => {
            for error in &errors {
                tracing::error!("{}", chain(error));
            }
            errors.iter().all(state::UndoError::is_final)
        }
        Err(error) => {
            tracing::error!("Removing what the VM left failed: {error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::tasks::Task;
    use fc_proto::protobuf::Message;
    use fc_proto::protobuf::well_known_types::timestamp::Timestamp;
    use std::sync::mpsc;

    #[tokio::test]
    async fn every_end_is_published_once() {
        let exit = |status| Exit {
            status,
            at: Timestamp::now(),
        };
        let published = |prepare: &dyn Fn(&Process)| {
            let shim = Shim::for_test();
            let task = Task::for_test(&shim, "a");
            prepare(&task.init);
            let exit = publish_end(&shim, &task.init, 42);
            let statuses: Vec<u32> = shim
                .events
                .waiting()
                .into_iter()
                .map(|event| {
                    assert_eq!(event.topic, "/tasks/exit");
                    let event = TaskExit::parse_from_bytes(&event.event.value).unwrap();
                    event.exit_status
                })
                .collect();
            (statuses, exit.status)
        };
        // Never ran.
        assert_eq!(published(&|_| {}), (vec![], 137));
        // Killed with its VM.
        let running = |process: &Process| process.set_status(Status::RUNNING);
        assert_eq!(published(&running), (vec![137], 137));
        // Its end was answered to Wait, and its event never came.
        let answered = |process: &Process| {
            running(process);
            process.set_exit(exit(3));
        };
        assert_eq!(published(&answered), (vec![3], 3));
        // Its event came, and Wait was never answered.
        let forwarded = |process: &Process| {
            running(process);
            process.set_published(exit(3));
        };
        assert_eq!(published(&forwarded), (vec![], 3));
        let both = |process: &Process| {
            answered(process);
            process.set_published(exit(3));
        };
        assert_eq!(published(&both), (vec![], 3));
    }

    #[tokio::test]
    async fn the_shim_answers_while_it_cleans_up() {
        let base = tempfile::tempdir().unwrap();
        let shim = Shim::for_test_in(base.path());
        let record = shim.dir.join("state.json");
        std::fs::create_dir_all(shim.dir.path()).unwrap();
        // Reading it lasts until somebody writes.
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &record, fifo, mode, 0).unwrap();
        let (answered, is_answered) = mpsc::channel();
        let writer = std::thread::spawn(move || {
            let answered = is_answered.recv_timeout(Duration::from_secs(60)).is_ok();
            std::fs::write(record, "").unwrap();
            answered
        });
        let (cleaned, answer) = tokio::join!(clean(&shim), async { answered.send(()) });
        answer.unwrap();
        assert!(writer.join().unwrap(), "cleaning up kept the thread");
        assert!(cleaned && !shim.dir.path().exists());
    }

    fn failure() -> StartError {
        StartError::Memory {
            asked: 1,
            least: 2,
            image: "/image".into(),
        }
    }

    #[tokio::test]
    async fn a_failed_vm_is_stopped_when_nothing_of_it_is_left() {
        let base = tempfile::tempdir().unwrap();
        let shim = Shim::for_test_in(base.path());
        assert!(shim.claim_creation());
        std::fs::create_dir_all(shim.dir.path()).unwrap();
        let failed = after_failure(&shim, failure(), Origin::Launcher);
        let stopped = async {
            stop(&shim, DEFAULT_BOUND).await.unwrap();
            assert!(!shim.dir.path().exists());
        };
        tokio::join!(failed, stopped);
    }

    #[tokio::test]
    async fn what_the_next_vm_of_the_id_has_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let shim = Shim::for_test_in(base.path());
        let mut tasks = shim.tasks.reserve("a").map(Some).unwrap();
        std::fs::create_dir_all(shim.dir.path()).unwrap();
        let failed = after_failure(&shim, failure(), Origin::Call);
        let next = async {
            shim.gone().await;
            assert!(!shim.dir.path().exists(), "who is told can use the id");
            std::fs::create_dir(shim.dir.path()).unwrap();
            // What the shim still waits for.
            tasks.take();
        };
        tokio::join!(failed, next);
        assert!(shim.dir.path().exists());
    }
}
