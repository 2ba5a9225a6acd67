//! The microVM metadata service (MMDS): JSON that the host puts with `/mmds`, and that guests get with HTTP from a
//! link-local address, which no network but this process answers for (Firecracker's MMDS user guide is the source).
//!
//! - [`store`]: the JSON, and what Firecracker checks of a configuration.
//! - [`session`]: the tokens of version 2. [`http`]: a guest's request and its answer.
//! - [`stack`]: ARP, IP and TCP for it, on the frames that [`crate::relay`] finds for its address.

pub mod http;
pub mod session;
pub mod stack;
pub mod store;

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use session::Sessions;
pub use stack::Stack;
pub use store::{MmdsConfigFault, MmdsFault, Store, check};

use crate::model::MmdsVersion;

/// Address that guests ask unless another is configured.
pub const DEFAULT_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The service, shared by the API and the guest's interfaces.
#[derive(Clone, Debug)]
pub struct Mmds(Arc<Mutex<State>>);

/// What the service knows.
#[derive(Debug)]
pub struct State {
    /// The data.
    pub store: Store,
    /// Whether guests need a token.
    pub version: MmdsVersion,
    /// Whether answers are EC2's whatever a guest accepts.
    pub imds_compat: bool,
    /// The tokens that guests have.
    pub sessions: Sessions,
}

impl Mmds {
    /// A service with an empty store for `limit` bytes of JSON.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            store: Store::new(limit),
            version: MmdsVersion::default(),
            imds_compat: false,
            sessions: Sessions::default(),
        })))
    }

    /// What it knows, until the guard is dropped.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        // Each change of the state is a single assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
