//! One stream's place for a connection to the host, which can break and be replaced.

use std::sync::Arc;

use tokio::sync::watch;

use crate::fd::Fd;

/// The place. The copying task takes connections from it, the services put them in.
#[derive(Debug)]
pub struct Slot(watch::Sender<State>);

#[derive(Debug, Clone)]
struct State {
    connection: Option<Arc<Fd>>,
    /// Counts connections, so that a late report of a broken one does not hit its successor.
    generation: u64,
    /// Nobody will attach any more: without a connection the stream is over.
    released: bool,
    /// The caller wants the stream to end when what is under way has arrived (CloseIO).
    close_requested: bool,
    /// The copying task has ended.
    done: bool,
}

/// A connection taken from a [`Slot`].
#[derive(Debug, Clone)]
pub struct Connected {
    /// The connection.
    pub fd: Arc<Fd>,
    generation: u64,
}

impl Slot {
    /// A slot with its first connection.
    #[must_use]
    pub fn new(connection: Fd) -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(State {
            connection: Some(Arc::new(connection)),
            generation: 0,
            released: false,
            close_requested: false,
            done: false,
        })))
    }

    /// Puts in a new connection, in place of the one that may be there. It is closed at once when
    /// the stream has ended.
    pub fn attach(&self, connection: Fd) {
        self.0.send_modify(|state| {
            if !state.done {
                state.connection = Some(Arc::new(connection));
                state.generation += 1;
            }
        });
    }

    /// From now on a broken connection is the stream's end.
    pub fn release(&self) {
        self.0.send_modify(|state| state.released = true);
    }

    /// Asks for the stream's end after what is under way.
    pub fn request_close(&self) {
        self.0.send_modify(|state| state.close_requested = true);
    }

    /// Whether the stream works or has come to its end; false when it waits for
    /// [`attach`](Self::attach).
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let state = self.0.borrow();
        state.connection.is_some() || state.done
    }

    /// Waits for a connection; none when the slot is released, or closing, without one.
    pub async fn connected(&self) -> Option<Connected> {
        let mut states = self.0.subscribe();
        let state = states
            .wait_for(|s| s.connection.is_some() || s.released || s.close_requested)
            .await
            .ok()?;
        let generation = state.generation;
        let fd = state.connection.clone()?;
        Some(Connected { fd, generation })
    }

    /// Waits for [`request_close`](Self::request_close).
    pub async fn close_requested(&self) {
        // Fails only without a sender, and `self` is one.
        let _ = self.0.subscribe().wait_for(|s| s.close_requested).await;
    }

    /// Waits until `connection` is not the slot's any more.
    pub async fn replaced(&self, connection: &Connected) {
        let mut states = self.0.subscribe();
        let changed = |s: &State| s.generation != connection.generation || s.connection.is_none();
        // As above.
        let _ = states.wait_for(changed).await;
    }

    /// Takes out `connection`, which has turned out to be broken.
    pub fn broken(&self, connection: &Connected) {
        self.0.send_if_modified(|state| {
            let current = state.generation == connection.generation;
            if current {
                state.connection = None;
            }
            current
        });
    }

    /// Called by the copying task at its end. The slot then holds no connection.
    pub fn finish(&self) {
        self.0.send_modify(|state| {
            state.connection = None;
            state.done = true;
        });
    }
}
