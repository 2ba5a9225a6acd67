//! From a spec to a VM whose agent answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fc_client::host::kvm::{self, Kvm};
use fc_client::{Vmm, VmmCommand, VmmEnd};
use fc_config::Config;
use fc_drives::{Layout, Links, StubDrives};
use fc_proto::guest::ANNOUNCE_PORT;
use sha2::{Digest, Sha256};
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
/// File name of the VMM that needs no KVM.
const EMULATOR: &str = "firecracker-tcg";
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
    let vmm = fc_client::host::vmm::choose(config.firecracker_binary_path.as_deref())?;
    tracing::info!(vmm = %vmm.path.display(), reason = vmm.reason, "Starting the VMM");
    let host = Host {
        vm_dir,
        config,
        timeline,
    };
    host.boot(&vmm.path, spec, state, deadline)
        .await
        .map_err(|error| name_kvm(error, vmm.path))
}

/// A failure on a host whose KVM is not what the VMM needs says so first. Nothing is refused
/// beforehand: a paravirtual KVM does run guests that are made for it.
fn name_kvm(error: BootError, vmm: PathBuf) -> BootError {
    let emulates = vmm.file_name().is_some_and(|name| name == EMULATOR);
    let blameless = matches!(
        error,
        BootError::File { .. } | BootError::Fifo(_) | BootError::Stubs(_) | BootError::State(_)
    );
    if emulates || blameless {
        return error;
    }
    match kvm::probe() {
        Kvm::Hardware => error,
        kvm => BootError::Kvm {
            vmm,
            kvm,
            source: Box::new(error),
        },
    }
}

/// Where and how a VM boots.
struct Host<'a> {
    vm_dir: &'a VmDir,
    config: &'a Config,
    timeline: &'a Timeline,
}

impl Host<'_> {
    async fn boot(
        &self,
        vmm: &Path,
        spec: VmSpec,
        state: &mut State,
        deadline: Instant,
    ) -> Result<Machine, BootError> {
        let stubs = StubDrives::create(
            self.vm_dir.path(),
            &Layout {
                containers: spec.containers,
                drive_mounts: Vec::new(),
                shared: spec.containers,
                volumes: 0,
            },
        )?;
        let announcements = self.listen()?;
        let fifos = make_fifos(self.vm_dir, &spec)?;
        let vmm = self.launch(vmm, state).await?;

        let start = async {
            configure(vmm.client(), self.config, &spec, &fifos, &stubs).await?;
            vmm.client().start_instance().await?;
            self.timeline.vm("instance_started");
            agent(self.vm_dir, &announcements, deadline, self.timeline)
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
            Arc::new(Links::new(self.vm_dir.path())),
            Arc::new(Patcher(vmm.client().clone())),
            Arc::new(Mounter {
                client: guest.drive_mounter(),
                context: guest.context(),
            }),
        );
        self.timeline.vm("agent_connected");
        Ok(Machine {
            dir: self.vm_dir.clone(),
            spec,
            vmm,
            guest,
            drives,
            fifos,
        })
    }

    fn listen(&self) -> Result<fc_vsock::Listener, BootError> {
        let vsock = self.vm_dir.join(dir::VSOCK);
        fc_vsock::Listener::bind(&vsock, ANNOUNCE_PORT).map_err(|source| BootError::File {
            path: vsock,
            source,
        })
    }

    async fn launch(&self, vmm: &Path, state: &mut State) -> Result<Vmm, BootError> {
        self.timeline.vm("vmm_spawned");
        let id = vmm_id(self.vm_dir.vm_id());
        let mut command = VmmCommand::new(vmm, id, self.vm_dir.path());
        command.log_output = self.config.log_levels.vmm_output();
        let vmm = Vmm::launch(command).await?;
        state.vmm = ProcessId::of(vmm.pid());
        state.store(self.vm_dir)?;
        self.timeline.vm("vmm_api_ready");
        Ok(vmm)
    }
}

/// The VM's id as Firecracker takes one: at most 64 letters, digits and `-`. An id that is
/// none is shortened to one that is, told apart by a hash.
fn vmm_id(vm_id: &str) -> String {
    const MAX: usize = 64;
    const HASH: usize = 16;
    if vm_id.len() <= MAX
        && vm_id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    {
        return vm_id.to_owned();
    }
    let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(vm_id));
    let readable: String = vm_id
        .chars()
        .take(MAX - HASH - 1)
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    format!("{readable}-{}", &hash[..HASH])
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
        // Longer than the caller waits: that bound is the one to be reported.
        Guest::poll(&vsock, vm_dir.namespace(), deadline + POLL_AFTER).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vmm_ids() {
        assert_eq!(vmm_id("vm-1"), "vm-1");
        let long = vmm_id(&"v".repeat(76));
        assert_eq!(long.len(), 64);
        assert!(long.starts_with("vvv"));
        let dotted = vmm_id("a.b_c");
        assert!(dotted.starts_with("a-b-c-") && dotted != vmm_id("a_b.c"));
    }
}
