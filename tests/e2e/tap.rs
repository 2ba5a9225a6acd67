//! Tap devices of the host, for VMs with an interface.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A tap, removed when this is dropped.
pub struct Tap(String);

impl Tap {
    /// A tap with a name that nobody else has.
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tap = Self(format!("fce{}-{number}", std::process::id() % 1_000_000));
        assert!(ip(&["tuntap", "add", "dev", &tap.0, "mode", "tap"]));
        tap
    }

    /// Its name, at most 15 characters.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        ip(&["link", "delete", &self.0]);
    }
}

fn ip(args: &[&str]) -> bool {
    let status = Command::new("ip").args(args).status();
    status.is_ok_and(|status| status.success())
}
