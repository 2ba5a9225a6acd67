//! From a spec to a VM whose agent answers.

use std::time::Duration;

use fc_client::{Vmm, VmmCommand, VmmEnd};
use fc_config::Config;
use fc_drives::{Layout, StubDrives};
use fc_proto::guest::ANNOUNCE_PORT;
use std::sync::Arc;
use tokio::time::Instant;

use super::backend::{Mounter, Patcher};
use super::configure::{configure, make_fifos};
use super::error::{BootError, Console};
use super::guest::{Guest, GuestError, announcement};
use super::{Machine, VmDir, VmSpec, dir, preflight};
use crate::process::ProcessId;
use crate::state::State;
use crate::timeline::Timeline;

/// Agents of the original never announce themselves; this long after the start of the guest
/// they begin to be looked for.
const POLL_AFTER: Duration = Duration::from_secs(1);
/// How long the VMM may take to end after its guest's agent said that it cannot serve.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Boots the VM of `spec` in its directory, which exists and is locked by the caller.
/// `state` is the record there, to which the VMM is added.
///
/// On error the VMM is gone; files in the directory are left to the caller.
///
/// # Errors
/// See [`BootError`]. A guest that dies is noticed at once, whatever was being waited for.
pub async fn boot(
    vm_dir: &VmDir,
    config: &Config,
    spec: VmSpec,
    state: &mut State,
    timeline: &Timeline,
) -> Result<Machine, BootError> {
    let deadline = Instant::now() + spec.timeout;
    preflight::check(&spec)?;
    let choice = fc_client::host::vmm::choose(config.firecracker_binary_path.as_deref())?;
    tracing::info!(vmm = %choice.path.display(), reason = choice.reason, "Starting the VMM");
    let stubs = StubDrives::create(
        vm_dir.path(),
        &Layout {
            containers: spec.containers,
            drive_mounts: Vec::new(),
            shared: spec.containers,
        },
    )?;
    let vsock = vm_dir.join(dir::VSOCK);
    let announcements =
        fc_vsock::Listener::bind(&vsock, ANNOUNCE_PORT).map_err(|source| BootError::File {
            path: vsock.clone(),
            source,
        })?;
    let fifos = make_fifos(vm_dir, &spec)?;

    timeline.vm("vmm_spawned");
    let mut command = VmmCommand::new(choice.path, vm_dir.vm_id(), vm_dir.path());
    command.log_output = config.log_levels.vmm_output();
    let vmm = Vmm::launch(command).await?;
    state.vmm = ProcessId::of(vmm.pid());
    state.store(vm_dir)?;
    timeline.vm("vmm_api_ready");

    let start = async {
        configure(vmm.client(), config, &spec, &fifos, &stubs).await?;
        vmm.client().start_instance().await?;
        timeline.vm("instance_started");
        agent(vm_dir, &announcements, deadline, timeline)
            .await
            .map_err(Failure::Guest)
    };
    let guest = tokio::select! {
        biased;
        result = tokio::time::timeout_at(deadline, start) => match result {
            Ok(Ok(guest)) => guest,
            Ok(Err(failure)) => return Err(explain(failure, &vmm).await),
            Err(_) => return Err(BootError::TimedOut {
                vm_id: spec.vm_id,
                bound: spec.timeout,
                console: Console::new(vmm.console()),
            }),
        },
        end = vmm.exited() => return Err(ended(&end, &vmm)),
    };
    let drives = stubs.connect(
        Arc::new(Patcher(vmm.client().clone())),
        Arc::new(Mounter {
            client: guest.drive_mounter(),
            context: guest.context(),
        }),
    );
    timeline.vm("agent_connected");
    Ok(Machine {
        dir: vm_dir.clone(),
        spec,
        vmm,
        guest,
        drives,
        fifos,
    })
}

/// Waits for the agent and introduces the VM to it.
async fn agent(
    vm_dir: &VmDir,
    announcements: &fc_vsock::Listener,
    deadline: Instant,
    timeline: &Timeline,
) -> Result<Guest, GuestError> {
    let vsock = vm_dir.join(dir::VSOCK);
    let poll = async {
        tokio::time::sleep(POLL_AFTER).await;
        Guest::poll(&vsock, vm_dir.namespace(), deadline).await
    };
    let (mut guest, announced) = tokio::select! {
        biased;
        announced = announcement(announcements) => {
            announced?;
            (Guest::connect(&vsock, vm_dir.namespace(), deadline).await?, true)
        }
        guest = poll => (guest?, false),
    };
    guest.configure(vm_dir.vm_id(), announced, timeline).await?;
    Ok(guest)
}

enum Failure {
    Boot(BootError),
    Guest(GuestError),
}

impl<E: Into<BootError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Boot(error.into())
    }
}

/// Adds the guest's last words to a failure. A dying VMM shows itself as a broken connection
/// first; its end is then the better explanation.
async fn explain(failure: Failure, vmm: &Vmm) -> BootError {
    match failure {
        Failure::Boot(error) => error,
        Failure::Guest(error) => {
            let end = tokio::time::timeout(LAST_WORDS, vmm.exited()).await;
            let explained = matches!(
                error,
                GuestError::Agent(_) | GuestError::Protocol { .. } | GuestError::Announcement(_)
            );
            match end {
                Ok(end) if !explained => ended(&end, vmm),
                _ => BootError::Guest {
                    error,
                    console: Console::new(vmm.console()),
                },
            }
        }
    }
}

fn ended(end: &VmmEnd, vmm: &Vmm) -> BootError {
    BootError::Ended {
        status: end.status,
        console: Console::new(vmm.console()),
    }
}
