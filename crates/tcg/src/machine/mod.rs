//! A running guest: QEMU, its control connection, its console, its drives, its balloon.

mod apic_timer;
mod balloon;
mod drive_io;
mod swap;
mod throttle;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::console::{self, Console};
use crate::drive::{DriveFile, DriveMode};
use crate::entropy::Source;
use crate::initrd;
use crate::logger::open_nonblocking;
use crate::metrics;
use crate::model::RateLimiter;
use crate::qemu::{
    self, End, Frozen, Plan, PlannedDrive, PlannedInterface, Process, QemuError, Qmp,
    drive_device_id, drive_node_name,
};
use crate::relay::Relay;
use crate::resources::Resources;
use swap::Swap;

pub use drive_io::DriveCounters;

/// Bound on the wait for the end of a QEMU that has hung up.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A guest that has been started.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    qmp: Qmp,
    drives: Vec<RunningDrive>,
    _relays: Vec<Relay>,
    _entropy: Option<Source>,
    pause: Option<Pause>,
    /// Locked by who needs the guest's processors as they are: a pause, and a look at the guest's timer.
    processors: Arc<Mutex<()>>,
    held: Option<OwnedMutexGuard<()>>,
}

/// How the guest's processors are kept from running.
#[derive(Debug)]
enum Pause {
    /// Their threads are held; the guest's time goes on.
    Held(#[expect(dead_code, reason = "dropped to let them go")] Frozen),
    /// QEMU has stopped the whole machine, its clocks too.
    Stopped,
}

/// A drive of a running guest.
#[derive(Debug)]
struct RunningDrive {
    mode: DriveMode,
    /// Name of the block node that is attached.
    node: String,
    /// Swaps that were tried.
    swaps: u64,
}

impl Machine {
    /// Starts QEMU with what is configured and lets the guest run. The console is the guest's serial port.
    ///
    /// # Errors
    /// QEMU is missing or too old, or it refuses the configuration; then nothing of it is left.
    pub async fn start(
        id: &str,
        resources: &Resources,
        kernel: &str,
        cmdline: String,
        vsock: Option<OwnedFd>,
    ) -> Result<(Self, Console), QemuError> {
        let program = qemu::find()?;
        let output = resources.serial().serial_out_path.as_deref();
        let output = output
            .map(open_nonblocking)
            .transpose()
            .map_err(preparing("the serial console's output"))?;
        let (qmp, qmp_of_qemu) = socket_pair("the control socket")?;
        let (console, console_of_qemu) =
            console::line().map_err(preparing("the serial console"))?;
        let initrd = match resources.initrd_path() {
            Some(path) => Some(initrd::prepare(path).map_err(preparing("the initrd"))?),
            None => None,
        };
        let (initrd, initrd_fd, initrd_scratch) = match initrd {
            Some(it) => (Some(it.path), it.copy, it.scratch),
            None => (None, None, None),
        };
        let copy = |file: &File| file.try_clone().map(OwnedFd::from);
        let drives = resources
            .drives()
            .iter()
            .map(|drive| {
                Ok(PlannedDrive {
                    drive,
                    fd: copy(&drive.backing.file)?,
                })
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(preparing("a drive"))?;
        let mut interfaces = Vec::new();
        let mut relays = Vec::new();
        for interface in resources.interfaces() {
            let preparing = preparing("a network interface");
            let (link, relay) = interface.connect().map_err(&preparing)?;
            let mac = interface.mac().map_err(&preparing)?;
            interfaces.push(PlannedInterface { mac, link });
            relays.extend(relay);
        }
        let (entropy, entropy_of_qemu) = match resources.entropy().map(Source::start) {
            Some(started) => {
                let (source, fd) = started.map_err(preparing("the entropy device"))?;
                (Some(source), Some(fd))
            }
            None => (None, None),
        };
        let bell =
            memfd_create("bell", MemfdFlags::CLOEXEC).map_err(|error| QemuError::Prepare {
                what: "drive swaps",
                error: error.into(),
            })?;
        let plan = Plan {
            id,
            machine: resources.machine(),
            kernel,
            initrd,
            initrd_fd,
            cmdline,
            drives,
            bell: bell.into(),
            interfaces,
            balloon: resources.balloon(),
            entropy: entropy_of_qemu,
            vsock,
            qmp: qmp_of_qemu.into(),
            console: console_of_qemu,
        };
        let process = Process::spawn(&program, &plan.arguments(), plan.inherited())?;
        log::info!("Started {} as process {}", program.display(), process.pid());
        // QEMU has its own copies; its end must show as the end of these connections.
        drop(plan);

        let qmp = match run(qmp, resources).await {
            Ok(qmp) => qmp,
            // Its last words say more than that it is gone; they come at once, or it has not ended after all.
            Err(QemuError::Gone { command }) => {
                let end = tokio::time::timeout(LAST_WORDS, process.ended()).await;
                return Err(end.map_or(QemuError::Gone { command }, QemuError::from));
            }
            Err(error) => return Err(error),
        };
        // QEMU runs, so it has read everything.
        drop(initrd_scratch);
        let processors = Arc::default();
        tokio::spawn(apic_timer::watch(qmp.clone(), Arc::clone(&processors)));
        let console = Console::start(console, output).map_err(preparing("the serial console"))?;
        let drives = resources
            .drives()
            .iter()
            .enumerate()
            .map(|(index, drive)| RunningDrive {
                mode: drive.mode(),
                node: drive_node_name(index, 0),
                swaps: 0,
            })
            .collect();
        Ok((
            Self {
                process,
                qmp,
                drives,
                _relays: relays,
                _entropy: entropy,
                pause: None,
                processors,
                held: None,
            },
            console,
        ))
    }

    /// Waits for QEMU's end.
    pub fn ended(&self) -> impl Future<Output = End> + Send + use<> {
        self.process.ended()
    }

    /// Whether the guest's processors stand still.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.pause.is_some()
    }

    /// Stops the guest's processors. Its clocks go on, unless the host forbids what it takes ([`Frozen`]).
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn pause(&mut self) -> Result<(), QemuError> {
        if self.paused() {
            return Ok(());
        }
        let threads = self.processor_threads().await?;
        let held = Arc::clone(&self.processors).lock_owned().await;
        self.qmp.execute("stop", json!({})).await?;
        self.held = Some(held);
        self.pause = Some(Pause::Stopped);
        match Frozen::hold(&threads) {
            Ok(frozen) => {
                self.qmp.execute("cont", json!({})).await?;
                self.pause = Some(Pause::Held(frozen));
            }
            Err(error) => {
                log::warn!("The guest's clocks stand still while it is paused: {error}");
            }
        }
        Ok(())
    }

    /// The threads that run the guest's processors.
    async fn processor_threads(&self) -> Result<Vec<i32>, QemuError> {
        let answer = self.qmp.execute("query-cpus-fast", json!({})).await?;
        let threads = answer.as_array().and_then(|processors| {
            let thread = |it: &Value| i32::try_from(it["thread-id"].as_i64()?).ok();
            processors.iter().map(thread).collect()
        });
        threads.ok_or_else(|| QemuError::Protocol(format!("no thread ids in {answer}")))
    }

    /// Lets the guest's processors run.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn resume(&mut self) -> Result<(), QemuError> {
        if let Some(Pause::Stopped) = self.pause {
            self.qmp.execute("cont", json!({})).await?;
        }
        self.pause = None;
        self.held = None;
        Ok(())
    }

    /// Presses Ctrl, Alt and Delete on the guest's keyboard.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn send_ctrl_alt_del(&self) -> Result<(), QemuError> {
        let key = |name| json!({ "type": "qcode", "data": name });
        let keys = json!({ "keys": [key("ctrl"), key("alt"), key("delete")] });
        self.qmp.execute("send-key", keys).await.map(drop)
    }

    /// Limits the drive with this index; `None` ends its limits.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub async fn limit_drive(
        &self,
        index: usize,
        limiter: Option<RateLimiter>,
    ) -> Result<(), QemuError> {
        limit_drive(&self.qmp, index, limiter).await
    }

    /// Puts `new` in place of the file behind the drive with this index, and tells the guest.
    ///
    /// # Errors
    /// QEMU refuses the file; the old one is then still attached.
    pub async fn swap_drive(&mut self, index: usize, new: &DriveFile) -> Result<(), QemuError> {
        let runs = !self.paused();
        let drive = &mut self.drives[index];
        // Counted even if the swap fails, so that a name is never used twice.
        drive.swaps += 1;
        let new_node = drive_node_name(index, drive.swaps);
        let swap = Swap {
            qmp: &self.qmp,
            device: format!("/machine/peripheral/{}", drive_device_id(index)),
            old_node: &drive.node,
            new_node: &new_node,
            size: new.size,
        };
        swap.run(new, drive.mode, runs).await?;
        drive.node = new_node;
        Ok(())
    }
}

/// Enters command mode, configures what the command line cannot, and lets the guest run.
async fn run(stream: UnixStream, resources: &Resources) -> Result<Qmp, QemuError> {
    let (qmp, mut events) = Qmp::connect(stream).await?;
    for (index, drive) in resources.drives().iter().enumerate() {
        if let Some(limiter) = drive.config.rate_limiter {
            limit_drive(&qmp, index, Some(limiter)).await?;
        }
    }
    if let Some(balloon) = resources.balloon() {
        balloon::set_target(&qmp, resources.machine().mem_size_mib, balloon.amount_mib).await?;
        balloon::set_interval(&qmp, balloon.stats_polling_interval_s).await?;
    }
    qmp.execute("cont", json!({})).await?;
    let mut balloon = balloon::Changes::new(resources.machine().mem_size_mib);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            log::debug!("QEMU event {} {}", event.event, event.data);
            if event.event == "BALLOON_CHANGE"
                && let Some(metric) = balloon.metric(&event.data)
            {
                metrics::add("balloon", metric);
            }
        }
    });
    Ok(qmp)
}

/// Sets a drive's limits in place of earlier ones.
async fn limit_drive(
    qmp: &Qmp,
    index: usize,
    limiter: Option<RateLimiter>,
) -> Result<(), QemuError> {
    let arguments = throttle::arguments(&drive_device_id(index), limiter);
    qmp.execute("block_set_io_throttle", arguments)
        .await
        .map(drop)
}

fn socket_pair(what: &'static str) -> Result<(UnixStream, UnixStream), QemuError> {
    UnixStream::pair().map_err(preparing(what))
}

fn preparing(what: &'static str) -> impl Fn(io::Error) -> QemuError {
    move |error| QemuError::Prepare { what, error }
}
