//! Tap devices of the host, for VMs with an interface, and networks apart from the host's.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
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

/// A network namespace with a name, removed with all that is in it when this is dropped.
pub struct Network(String);

impl Network {
    /// One with nothing in it, with a name that nobody else has.
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let network = Self(format!("fce{}-{number}", std::process::id()));
        assert!(ip(&["netns", "add", &network.0]));
        network
    }

    /// Adds a tap for this user.
    pub fn add_tap(&self, name: &str, user: u32) {
        let user = user.to_string();
        let inside = ["-n", &self.0, "tuntap", "add", "dev", name];
        assert!(ip(&[&inside[..], &["mode", "tap", "user", &user]].concat()));
    }

    /// Where it is bound.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// What `/proc/<process>/ns/net` of a process in it links to.
    pub fn identity(&self) -> PathBuf {
        let metadata = self.path().metadata().expect("a network namespace");
        PathBuf::from(format!("net:[{}]", metadata.ino()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(args: &[&str]) -> bool {
    let status = Command::new("ip").args(args).status();
    status.is_ok_and(|status| status.success())
}
