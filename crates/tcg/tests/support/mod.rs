//! What the integration tests share: the program under test, its API, and a small guest.

#![allow(dead_code, unused_imports, reason = "each test program uses a part")]

mod guest;
mod vmm;

pub use guest::Guest;
pub use vmm::{BOUND, SOCKET, Vmm};
