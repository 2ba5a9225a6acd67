//! The machine as a whole: what the agent may do to it, and its end.

use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::mount::disk_mounts;
use crate::say;
use crate::task::Tasks;
use crate::tracker::Tracker;

/// Bound on the host's reading of output that is on its way when the machine is to end.
const DRAIN_BOUND: Duration = Duration::from_secs(5);

/// What the agent is in its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// PID 1 of a VM: the machine is the agent's.
    Init,
    /// A service of a VM that has another init.
    Service,
    /// A process under test on somebody's machine, to be left alone.
    Test,
}

impl Role {
    /// Whether hostname, clock and random pool are the agent's to set.
    #[must_use]
    pub fn owns_settings(self) -> bool {
        self != Self::Test
    }

    /// Brings all disks to rest, so that nothing is lost when the machine stops. Blocks.
    fn settle_disks(self) {
        if self == Self::Init {
            let mounts = disk_mounts().unwrap_or_default();
            for target in mounts.iter().rev() {
                if let Err(errno) = umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
                    say!("Cannot unmount {}: {errno}", target.display());
                }
            }
        }
        if self != Self::Test {
            nix::unistd::sync();
        }
    }

    /// Ends the machine, if it is the agent's, else only the agent.
    pub fn end(self, code: i32) -> ! {
        if self == Self::Init {
            // Firecracker ends when the guest resets itself; it knows no power button.
            let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
            say!("Cannot reset the machine: {errno}");
        }
        // As PID 1 this makes the kernel panic, which ends the VM too.
        std::process::exit(code)
    }
}

/// The orderly end. Clones share it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    role: Role,
    streams: Tracker,
    done: watch::Sender<bool>,
}

impl Shutdown {
    /// For a machine in which the agent is `role`; `streams` counts undelivered output.
    #[must_use]
    pub fn new(role: Role, streams: Tracker) -> Self {
        Self {
            role,
            streams,
            done: watch::Sender::new(false),
        }
    }

    /// Ends all containers and brings everything to rest. The machine can stop afterwards.
    pub async fn run(&self, tasks: &std::sync::Arc<Tasks>) {
        tasks.delete_all().await;
        // What a host that has stopped reading misses, it does not want.
        let _ = timeout(DRAIN_BOUND, self.streams.idle()).await;
        let role = self.role;
        // Not awaited on this thread: a slow disk must not keep the last answers from leaving.
        let _ = tokio::task::spawn_blocking(move || role.settle_disks()).await;
        self.done.send_replace(true);
    }

    /// Waits until [`run`](Self::run) is done.
    pub async fn done(&self) {
        // Fails only without a sender, and `self` is one.
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }
}
