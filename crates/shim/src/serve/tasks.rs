//! The VM's tasks: which ids are taken, and by what.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fc_proto::task::api::Mount;
use tokio::sync::{Notify, watch};

use super::error::CallError;
use super::files::Files;
use super::process::Process;
use super::write_back::WriteBack;

/// A container.
pub struct Task {
    /// Its id.
    pub id: String,
    /// Its bundle on the host.
    pub bundle: PathBuf,
    /// Its rootfs as containerd gave it.
    pub rootfs: Vec<Mount>,
    /// Its first process.
    pub init: Arc<Process>,
    /// Notified when the event of its deletion is on its way to containerd.
    pub deletion_published: Notify,
    /// Where to bring back what it writes, if that is wanted.
    pub write_back: Option<WriteBack>,
    execs: Mutex<HashMap<String, Slot<Process>>>,
    files: Mutex<Option<Files>>,
}

impl Task {
    /// A container that the guest has created; `files` are behind its drives.
    pub fn new(
        bundle: PathBuf,
        rootfs: Vec<Mount>,
        init: Arc<Process>,
        files: Files,
        write_back: Option<WriteBack>,
    ) -> Self {
        Self {
            id: init.task_id.clone(),
            bundle,
            rootfs,
            init,
            deletion_published: Notify::new(),
            write_back,
            execs: Mutex::default(),
            files: Mutex::new(Some(files)),
        }
    }

    /// Gives up the files behind its drives, once the VM does not use them any more.
    pub fn release_files(&self) {
        lock(&self.files).take();
    }

    /// One of its processes; an empty `exec_id` means the first one.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, CallError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        match lock(&self.execs).get(exec_id) {
            Some(Slot::Ready(process)) => Ok(Arc::clone(process)),
            _ => Err(CallError::NoExec {
                task: self.id.clone(),
                exec: exec_id.to_owned(),
            }),
        }
    }

    /// All its processes.
    pub fn processes(&self) -> Vec<Arc<Process>> {
        let execs = lock(&self.execs);
        let execs = execs.values().filter_map(Slot::ready);
        execs.chain([Arc::clone(&self.init)]).collect()
    }

    /// Takes an exec id.
    pub fn reserve_exec(&self, exec_id: &str) -> Result<ExecReservation<'_>, CallError> {
        let mut execs = lock(&self.execs);
        if execs.contains_key(exec_id) {
            return Err(CallError::Exists {
                what: "Exec",
                id: exec_id.to_owned(),
            });
        }
        execs.insert(exec_id.to_owned(), Slot::Reserved);
        Ok(ExecReservation {
            task: self,
            exec_id: exec_id.to_owned(),
            filled: false,
        })
    }

    /// Frees an exec id.
    pub fn remove_exec(&self, exec_id: &str) {
        lock(&self.execs).remove(exec_id);
    }
}

#[cfg(test)]
impl Task {
    /// A task of `shim` whose first process has no streams and that has no files.
    pub fn for_test(shim: &super::shim::Shim, id: &str) -> Arc<Self> {
        let task = Arc::new(Self {
            id: id.to_owned(),
            bundle: PathBuf::from("/bundle"),
            rootfs: Vec::new(),
            init: Arc::new(Process::for_test(id, "")),
            deletion_published: Notify::new(),
            write_back: None,
            execs: Mutex::default(),
            files: Mutex::default(),
        });
        let reservation = shim.tasks.reserve(id).expect("the id is free");
        reservation.fill(Arc::clone(&task));
        task
    }
}

enum Slot<T> {
    /// Being created.
    Reserved,
    Ready(Arc<T>),
}

impl<T> Slot<T> {
    fn ready(&self) -> Option<Arc<T>> {
        match self {
            Self::Reserved => None,
            Self::Ready(value) => Some(Arc::clone(value)),
        }
    }
}

/// An exec id that is taken, and free again on drop unless filled.
pub struct ExecReservation<'a> {
    task: &'a Task,
    exec_id: String,
    filled: bool,
}

impl ExecReservation<'_> {
    /// Puts the process there.
    pub fn fill(mut self, process: Arc<Process>) {
        self.filled = true;
        lock(&self.task.execs).insert(self.exec_id.clone(), Slot::Ready(process));
    }
}

impl Drop for ExecReservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.task.remove_exec(&self.exec_id);
        }
    }
}

/// All tasks of the VM.
pub struct Tasks {
    slots: Mutex<Table>,
    count: watch::Sender<usize>,
}

#[derive(Default)]
struct Table {
    slots: HashMap<String, Slot<Task>>,
    closed: bool,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            slots: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Tasks {
    /// Takes a task id, unless the table is closed.
    pub fn reserve(&self, id: &str) -> Result<Reservation<'_>, CallError> {
        let mut table = lock(&self.slots);
        if table.closed {
            return Err(CallError::Stopping);
        }
        if table.slots.contains_key(id) {
            return Err(CallError::Exists {
                what: "Task",
                id: id.to_owned(),
            });
        }
        table.slots.insert(id.to_owned(), Slot::Reserved);
        self.count.send_replace(table.slots.len());
        Ok(Reservation {
            tasks: self,
            id: id.to_owned(),
            filled: false,
        })
    }

    /// A task.
    pub fn get(&self, id: &str) -> Result<Arc<Task>, CallError> {
        lock(&self.slots)
            .slots
            .get(id)
            .and_then(Slot::ready)
            .ok_or_else(|| CallError::NoTask(id.to_owned()))
    }

    /// A task once its creation has ended, well or not.
    pub async fn get_settled(&self, id: &str) -> Result<Arc<Task>, CallError> {
        let mut count = self.count.subscribe();
        loop {
            match lock(&self.slots).slots.get(id) {
                Some(Slot::Reserved) => {}
                Some(Slot::Ready(task)) => return Ok(Arc::clone(task)),
                None => return Err(CallError::NoTask(id.to_owned())),
            }
            // The sender lives as long as `self`.
            let _ = count.changed().await;
        }
    }

    /// All tasks that exist.
    pub fn all(&self) -> Vec<Arc<Task>> {
        let table = lock(&self.slots);
        table.slots.values().filter_map(Slot::ready).collect()
    }

    /// Frees a task id.
    pub fn remove(&self, id: &str) {
        let mut table = lock(&self.slots);
        table.slots.remove(id);
        self.count.send_replace(table.slots.len());
    }

    /// Takes no more tasks if there are none; answers whether it is closed.
    pub fn close_if_empty(&self) -> bool {
        let mut table = lock(&self.slots);
        table.closed |= table.slots.is_empty();
        table.closed
    }

    /// Takes no more tasks.
    pub fn close(&self) {
        lock(&self.slots).closed = true;
    }

    /// Waits until there are no tasks.
    pub async fn empty(&self) {
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// A task id that is taken, and free again on drop unless filled.
pub struct Reservation<'a> {
    tasks: &'a Tasks,
    id: String,
    filled: bool,
}

impl Reservation<'_> {
    /// Puts the task there.
    pub fn fill(mut self, task: Arc<Task>) {
        self.filled = true;
        let mut table = lock(&self.tasks.slots);
        table.slots.insert(self.id.clone(), Slot::Ready(task));
        self.tasks.count.send_replace(table.slots.len());
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.tasks.remove(&self.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not make these values wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ids_are_taken_and_given_back() {
        let tasks = Tasks::default();
        let reservation = tasks.reserve("a").unwrap();
        assert!(matches!(tasks.reserve("a"), Err(CallError::Exists { .. })));
        assert!(matches!(tasks.get("a"), Err(CallError::NoTask(_))));
        assert!(!tasks.close_if_empty());
        let (settled, ()) = tokio::join!(tasks.get_settled("a"), async {
            tokio::task::yield_now().await;
            drop(reservation);
        });
        assert!(matches!(settled, Err(CallError::NoTask(_))));
        tasks.empty().await;
        assert!(tasks.close_if_empty());
        assert!(matches!(tasks.reserve("a"), Err(CallError::Stopping)));
    }
}
