//! The shim's state: its VM, its tasks, its queue of events.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fc_client::Tail;
use fc_config::Config;
use fc_rpc::events::Events;
use fc_vm::dir::VmDir;
use fc_vm::machine::{Console, Machine, Progress, VmSpec};
use fc_vm::timeline::Timeline;
use fc_volume::CopySettings;
use tokio::sync::{Notify, watch};

use super::error::{CallError, StartError};
use super::io::Ports;
use super::tasks::Tasks;

/// How long a call waits for somebody to ask for a VM. Once somebody did, calls wait as long as
/// the VM's start may take.
const CREATE_VM_BOUND: Duration = Duration::from_secs(5);

/// Everything that the shim's services share.
pub struct Shim {
    /// The runtime's configuration.
    pub config: Config,
    /// The VM's directory.
    pub dir: VmDir,
    /// The phase table's events.
    pub timeline: Timeline,
    /// The last lines of the shim's log.
    pub log: Tail,
    /// What the VM's start has come to, its console and its VMM's log.
    pub progress: Progress,
    /// What the VM is to be, once somebody asked for one that can be.
    pub asked: OnceLock<VmSpec>,
    /// When somebody asked for the VM, in nanoseconds since 1970.
    pub created: OnceLock<u64>,
    /// When its agent answered, in nanoseconds since 1970.
    pub came_up: OnceLock<u64>,
    /// Events on their way to containerd.
    pub events: Events,
    /// The VM's tasks.
    pub tasks: Tasks,
    /// Turns snapshots into drives.
    pub rootfs: fc_rootfs::Rootfs,
    /// Turns containers' mounts into drives.
    pub volumes: fc_volume::Volumes,
    phase: watch::Sender<Phase>,
    end_reason: OnceLock<&'static str>,
    start_cancelled: Notify,
    failure_told: Notify,
    ended: watch::Sender<bool>,
}

/// Where the VM is in its life.
#[derive(Clone)]
pub enum Phase {
    /// Nobody asked for it yet.
    Waiting,
    /// On its way.
    Booting,
    /// Its agent answers.
    Running(Arc<Running>),
    /// It did not start.
    Failed(Arc<StartError>),
    /// Its VMM has ended; the guest's last words.
    Gone(Console),
}

/// A VM whose agent answers.
pub struct Running {
    /// The VM.
    pub machine: Machine,
    /// Ports for processes' streams.
    pub ports: Ports,
    /// True once it is known that the agent gives no events.
    without_events: watch::Sender<bool>,
}

impl Running {
    /// A VM whose agent answers.
    pub fn new(machine: Machine, ports: Ports) -> Self {
        Self {
            machine,
            ports,
            without_events: watch::Sender::new(false),
        }
    }

    /// The agent gives no events.
    pub fn set_without_events(&self) {
        self.without_events.send_replace(true);
    }

    /// Waits until it is known that the agent gives no events.
    pub async fn no_events(&self) {
        let mut without = self.without_events.subscribe();
        // The sender lives as long as `self`.
        let _ = without.wait_for(|without| *without).await;
    }
}

impl Shim {
    /// A shim without a VM.
    pub fn new(config: Config, dir: &VmDir, ttrpc_address: String, log: Tail) -> Arc<Self> {
        Arc::new(Self {
            timeline: Timeline::new(config.timeline_path.as_deref(), dir.vm_id()),
            events: Events::new(ttrpc_address.into(), dir.namespace()),
            rootfs: fc_rootfs::Rootfs::new(fc_rootfs::Settings {
                cache_size: u64::from(config.image_cache_size_mib) << 20,
                ..fc_rootfs::Settings::new(&config.image_cache_dir)
            }),
            volumes: fc_volume::Volumes::new(CopySettings::new(
                u64::from(config.volume_copy_limit_mib) << 20,
            )),
            config,
            log,
            progress: Progress::default(),
            asked: OnceLock::new(),
            created: OnceLock::new(),
            came_up: OnceLock::new(),
            dir: dir.clone(),
            tasks: Tasks::default(),
            phase: watch::Sender::new(Phase::Waiting),
            end_reason: OnceLock::new(),
            start_cancelled: Notify::new(),
            failure_told: Notify::new(),
            ended: watch::Sender::new(false),
        })
    }

    /// Where the VM is in its life.
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Moves the VM on.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Claims the creation of the VM; only the first caller gets it.
    pub fn claim_creation(&self) -> bool {
        self.phase.send_if_modified(|phase| {
            let first = matches!(phase, Phase::Waiting);
            if first {
                *phase = Phase::Booting;
            }
            first
        })
    }

    /// What the VM is to be, waiting for somebody to ask for it.
    pub async fn spec(&self) -> Result<&VmSpec, CallError> {
        self.asked_for().await?;
        match self.asked.get() {
            Some(spec) => Ok(spec),
            // There cannot be such a VM.
            None => Err(self.running().err().unwrap_or(CallError::NotCreated)),
        }
    }

    async fn asked_for(&self) -> Result<(), CallError> {
        let mut phase = self.phase.subscribe();
        let asked = phase.wait_for(|p| !matches!(p, Phase::Waiting));
        match tokio::time::timeout(CREATE_VM_BOUND, asked).await {
            Err(_) => Err(CallError::NotCreated),
            Ok(_) => Ok(()),
        }
    }

    /// The running VM, waiting for one that is on its way.
    pub async fn vm(&self) -> Result<Arc<Running>, CallError> {
        self.asked_for().await?;
        let mut phase = self.phase.subscribe();
        // Fails only without a sender, and `self` has it.
        let _ = phase.wait_for(|p| !matches!(p, Phase::Booting)).await;
        self.running()
    }

    /// The running VM, without waiting.
    pub fn running(&self) -> Result<Arc<Running>, CallError> {
        match self.phase() {
            Phase::Running(running) => Ok(running),
            Phase::Failed(error) => {
                self.tell_failure();
                Err(CallError::Start(error))
            }
            Phase::Waiting | Phase::Booting => Err(CallError::NotCreated),
            Phase::Gone(console) => Err(CallError::Gone {
                vm_id: self.dir.vm_id().to_owned(),
                why: self.end_reason(),
                console,
            }),
        }
    }

    /// Why the VM ended, if it did; the first reason counts.
    pub fn set_end_reason(&self, reason: &'static str) {
        let _ = self.end_reason.set(reason);
    }

    /// What to say of a VM that has ended.
    pub fn end_reason(&self) -> &'static str {
        self.end_reason.get().unwrap_or(&"its VMM is gone")
    }

    /// Gives up a start that is under way.
    pub fn cancel_start(&self) {
        self.start_cancelled.notify_one();
    }

    /// Waits until the start is to be given up.
    pub async fn start_cancelled(&self) {
        self.start_cancelled.notified().await;
    }

    /// The running VM, once its agent can be called: a connection that broke is being made again.
    pub async fn reachable(&self) -> Result<Arc<Running>, CallError> {
        let running = self.running()?;
        if running.machine.guest().connected().await {
            Ok(running)
        } else {
            // It is ending, or about to.
            Err(self.running().err().unwrap_or(CallError::Stopping))
        }
    }

    /// Somebody was told why the VM did not start, or nobody will ask.
    pub fn tell_failure(&self) {
        self.failure_told.notify_one();
    }

    /// Waits until somebody was told why the VM did not start.
    pub async fn failure_told(&self) {
        self.failure_told.notified().await;
    }

    /// Waits until the VM is on its way out for good: its VMM gone, or never started.
    pub async fn gone(&self) {
        let mut phase = self.phase.subscribe();
        let gone = |p: &Phase| matches!(p, Phase::Gone(_) | Phase::Failed(_));
        let _ = phase.wait_for(gone).await;
    }

    /// The shim's work is done.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// Waits until the shim's work is done.
    pub async fn ended(&self) {
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// The process id to show for a container: the VMM's, where tools can look at it, or the
    /// guest's own if the configuration wants that.
    pub fn pid(&self, running: &Running, guest_pid: u32) -> u32 {
        if self.config.guest_pids {
            guest_pid
        } else {
            running.machine.vmm_pid()
        }
    }
}

#[cfg(test)]
impl Shim {
    /// A shim whose VM nobody asked for yet, without a containerd.
    pub fn for_test() -> Arc<Self> {
        Self::for_test_in(std::path::Path::new("/nonexistent"))
    }

    /// The same, with the VM's directory in `base`.
    pub fn for_test_in(base: &std::path::Path) -> Arc<Self> {
        let dir = VmDir::new(base, "ns", "vm").expect("valid names");
        Self::new(
            Config::default(),
            &dir,
            "/nonexistent/containerd.sock.ttrpc".to_owned(),
            Tail::default(),
        )
    }

    /// Its VM was given up before it ran.
    pub fn fail_for_test(&self) {
        self.set_phase(Phase::Failed(Arc::new(StartError::Stopped)));
    }
}
