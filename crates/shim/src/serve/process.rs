//! A process in the VM as the host knows it: enough to answer State without asking the guest.

use std::sync::{Mutex, OnceLock};

use fc_proto::protobuf::MessageField;
use fc_proto::protobuf::well_known_types::timestamp::Timestamp;
use fc_proto::task::api::{StateResponse, Status};
use tokio::sync::watch;

use super::io::{ProcessIo, Stdio, Written};

/// How a process ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// Exit code, or 128 and the signal's number.
    pub status: u32,
    /// When.
    pub at: Timestamp,
}

impl Exit {
    /// An end as the guest told it.
    pub fn told(status: u32, at: MessageField<Timestamp>) -> Self {
        Self {
            status,
            at: at.unwrap_or_default(),
        }
    }

    /// The end of a process whose VM is gone: as if killed, now.
    pub fn killed() -> Self {
        Self {
            status: 128 + 9,
            at: Timestamp::now(),
        }
    }
}

/// A container's first process, or an exec.
pub struct Process {
    /// The task.
    pub task_id: String,
    /// The exec; empty for the container's first process.
    pub exec_id: String,
    /// Where containerd wants its streams.
    pub stdio: Stdio,
    status: Mutex<Status>,
    /// How it ended, once that is known.
    exit: OnceLock<Exit>,
    /// Whether Wait may tell its end.
    told: watch::Sender<bool>,
    published: OnceLock<Exit>,
    io: Mutex<Option<ProcessIo>>,
}

impl Process {
    /// A process that the guest has created.
    pub fn new(task_id: &str, exec_id: &str, stdio: Stdio, io: ProcessIo) -> Self {
        Self {
            task_id: task_id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdio,
            status: Mutex::new(Status::CREATED),
            exit: OnceLock::new(),
            told: watch::Sender::new(false),
            published: OnceLock::new(),
            io: Mutex::new(Some(io)),
        }
    }

    /// What containerd calls its status.
    pub fn status(&self) -> Status {
        if self.known_exit().is_some() {
            Status::STOPPED
        } else {
            *lock(&self.status)
        }
    }

    /// The guest said that it started, paused or resumed.
    pub fn set_status(&self, status: Status) {
        *lock(&self.status) = status;
    }

    /// The process ended, which Wait tells once its output has been read; later news of that are ignored. `written` is
    /// how much it said, if the guest can tell.
    pub async fn ended(&self, exit: Exit, written: Option<Written>) {
        let _ = self.exit.set(exit);
        let delivery = lock(&self.io).as_ref().map(|io| {
            io.process_ended(written);
            io.delivery()
        });
        if let Some(delivery) = delivery {
            delivery.finished().await;
        }
        self.told.send_replace(true);
    }

    /// The process ended, which Wait tells at once, as its client has given it up; later news of that are ignored.
    pub fn set_exit(&self, exit: Exit) {
        let _ = self.exit.set(exit);
        self.told.send_replace(true);
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.get().cloned()
    }

    /// How it ended, as soon as anything is known of that. A client that learned of it by the event expects of State
    /// that it is stopped, and deletes nothing else.
    pub fn known_exit(&self) -> Option<&Exit> {
        self.exit.get().or(self.published())
    }

    /// The event of its end is on its way to containerd. Wait's answer and the event come from the guest
    /// independently, and the VM may end between them.
    pub fn set_published(&self, exit: Exit) {
        // The first is what containerd was told.
        let _ = self.published.set(exit);
    }

    /// What containerd was told of its end by an event, if it was.
    pub fn published(&self) -> Option<&Exit> {
        self.published.get()
    }

    /// Waits until its end may be told.
    pub async fn wait(&self) -> Exit {
        // Fails only without a sender, and `self` is one.
        let _ = self.told.subscribe().wait_for(|told| *told).await;
        self.exit().unwrap_or_else(Exit::killed)
    }

    /// Whether somebody waits for its end.
    pub fn is_awaited(&self) -> bool {
        self.told.receiver_count() > 0
    }

    /// Its streams, for the one who ends them.
    pub fn take_io(&self) -> Option<ProcessIo> {
        lock(&self.io).take()
    }

    /// Closes its stdin after what was written to it so far.
    pub fn close_stdin(&self) {
        if let Some(io) = lock(&self.io).as_ref() {
            io.close_stdin();
        }
    }

    /// The answer to State, except for what belongs to the task.
    pub fn state(&self, pid: u32, bundle: &str) -> StateResponse {
        let exit = self.known_exit().cloned();
        StateResponse {
            id: self.task_id.clone(),
            exec_id: self.exec_id.clone(),
            bundle: bundle.to_owned(),
            pid,
            status: self.status().into(),
            stdin: self.stdio.stdin.clone(),
            stdout: self.stdio.stdout.clone(),
            stderr: self.stdio.stderr.clone(),
            terminal: self.stdio.terminal,
            exit_status: exit.as_ref().map_or(0, |e| e.status),
            exited_at: exit.map_or_else(MessageField::none, |e| MessageField::some(e.at)),
            ..StateResponse::default()
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic elsewhere does not make these values wrong.
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
impl Process {
    /// A process without streams.
    pub fn for_test(task_id: &str, exec_id: &str) -> Self {
        Self {
            task_id: task_id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdio: Stdio::default(),
            status: Mutex::new(Status::CREATED),
            exit: OnceLock::new(),
            told: watch::Sender::new(false),
            published: OnceLock::new(),
            io: Mutex::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients that go by events ask State before they delete.
    #[tokio::test]
    async fn a_published_end_is_stated_and_wait_is_answered_later() {
        let process = Process::for_test("a", "");
        process.set_status(Status::RUNNING);
        let exit = Exit {
            status: 3,
            at: Timestamp::now(),
        };
        process.set_published(exit.clone());
        let state = process.state(1, "/bundle");
        assert_eq!(state.status, Status::STOPPED.into());
        assert_eq!(state.exit_status, 3);
        let mut wait = std::pin::pin!(process.wait());
        let pending =
            std::future::poll_fn(|cx| std::task::Poll::Ready(wait.as_mut().poll(cx).is_pending()));
        assert!(
            pending.await,
            "Wait was answered before all output was read"
        );
        process.ended(exit.clone(), None).await;
        assert_eq!(wait.await, exit);
    }
}
