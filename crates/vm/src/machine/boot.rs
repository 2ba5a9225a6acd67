//! From a spec to a VM whose agent answers.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fc_client::Vmm;
use fc_config::Config;
use fc_drives::{Attach, BootOnly, DriveMountSlot, Drives, Layout, StubDrives};
use fc_errors::chain;
use fc_host_file::HostFile;
use fc_jailer::{Jailer, Role, Runc, Setup, Start, Unjailed};
use fc_proto::guest::ANNOUNCE_PORT;
use tokio::time::Instant;

use super::backend::{Mounter, Patcher};
use super::boot_failure::{Failure, emulates, ended, explain, name_kvm, not_started};
use super::configure::{self, Shown, configure};
use super::error::BootError;
use super::fifos::Fifos;
use super::guest::{Guest, GuestError, announcement};
use super::last_words::Console;
use super::preflight::DriveFiles;
use super::spec::drive_mount_field;
use super::vmm_id::vmm_id;
use super::{HostPorts, Machine, Progress, VmDir, VmSpec, VmmInfo, WaitsFor, dir, preflight};
use crate::guest_image;
use crate::process::ProcessId;
use crate::state::State;
use crate::timeline::Timeline;

/// Agents of the original never announce themselves; this long after the start of the guest
/// they begin to be looked for, unless the root image says that its agent is one of ours.
const POLL_AFTER: Duration = Duration::from_secs(1);

/// Boots the VM of `spec` in its directory, which exists and is locked by the caller, and attaches its
/// drive mounts. `state` is the record there, to which the VMM is added. `progress` can be watched meanwhile.
///
/// On error, and when the future is dropped, the VMM is gone; [`crate::state::undo`] removes the rest. A failed start
/// undoes its jail itself, without blocking. A drop undoes nothing: it blocks only for the end of what it kills, the
/// VMM and an OCI runtime at work. That takes milliseconds; what survives its SIGKILL is given up after 1 s.
///
/// # Errors
/// See [`BootError`]. A guest that dies is noticed at once, whatever was being waited for.
pub async fn boot(
    vm_dir: &VmDir,
    config: &Config,
    spec: VmSpec,
    state: &mut State,
    timeline: &Timeline,
    progress: &Progress,
) -> Result<Machine, BootError> {
    let deadline = Instant::now() + spec.timeout;
    let check = progress.begin("check the request", WaitsFor::Nobody);
    let files = preflight::check(&spec).await?;
    let vmm = fc_client::host::vmm::choose(config.firecracker_binary_path.as_deref())?;
    tracing::info!(vmm = %vmm.path.display(), reason = vmm.reason, "Starting the VMM");
    drop(check);
    let jail = prepare(vm_dir, config, &spec, &vmm.path, progress).await?;
    let host = Host {
        vm_dir,
        config,
        timeline,
        progress,
        deadline,
        ports: HostPorts::new(Arc::clone(&jail)),
        jail: Arc::clone(&jail),
    };
    let (vm_id, bound) = (spec.vm_id.clone(), spec.timeout);
    let booted = tokio::time::timeout_at(deadline, host.boot(&vmm.path, spec, files, state)).await;
    let error = match booted {
        Ok(Ok(machine)) => return Ok(machine),
        Ok(Err(error)) => error,
        Err(_) => BootError::TimedOut {
            vm_id,
            bound,
            during: progress.doing(),
            console: Console::new(progress.console().lines()),
        },
    };
    // What cannot be undone now is on record.
    for error in jail.close().await {
        tracing::warn!(error = chain(&error), "Something of the jail stays for now");
    }
    Err(name_kvm(error, vmm.path))
}

/// The jail that was asked for, or none.
async fn prepare(
    vm_dir: &VmDir,
    config: &Config,
    spec: &VmSpec,
    vmm: &Path,
    progress: &Progress,
) -> Result<Arc<dyn Jailer>, BootError> {
    let vmm_id = vmm_id(vm_dir.vm_id());
    let Some(request) = &spec.jail else {
        return Ok(Arc::new(Unjailed::new(vm_dir.path(), vmm, &vmm_id)));
    };
    let _preparing = progress.begin("make the jail", WaitsFor::Nobody);
    let setup = Setup {
        dir: vm_dir.path(),
        namespace: vm_dir.namespace(),
        vm_id: vm_dir.vm_id(),
        vmm,
        vmm_id: &vmm_id,
        runc: config.jailer.runtime(),
        template: &config.jailer.runc_config_path,
        request: request.clone(),
    };
    Ok(Arc::new(Runc::prepare(setup).await?))
}

/// Where and how a VM boots.
struct Host<'a> {
    vm_dir: &'a VmDir,
    config: &'a Config,
    timeline: &'a Timeline,
    progress: &'a Progress,
    deadline: Instant,
    jail: Arc<dyn Jailer>,
    ports: HostPorts,
}

impl Host<'_> {
    async fn boot(
        &self,
        vmm: &Path,
        spec: VmSpec,
        files: DriveFiles,
        state: &mut State,
    ) -> Result<Machine, BootError> {
        self.check(&spec, &files)?;
        let making = self.progress.begin("make the VM's files", WaitsFor::Nobody);
        let stubs = StubDrives::create(self.jail.root(), &layout(&spec))?;
        for stub in stubs.boot_drives() {
            self.jail.share(&stub.file_name)?;
        }
        let announcements = self.ports.listen(ANNOUNCE_PORT);
        let announcements = announcements.map_err(BootError::Listen)?;
        let fifos = Fifos::make(self.vm_dir, &spec, state, self.progress)?;
        drop(making);
        let showing = self
            .progress
            .begin("show files to the VMM", WaitsFor::Nobody);
        let root = self.jail.drive_file(files.root, !spec.root.writable)?;
        let shown = self.show(&spec, root.file(), &fifos).await?;
        drop(showing);
        let emulates = emulates(vmm);
        let vmm = match self.start(vmm, &fifos, state).await {
            Ok(vmm) => vmm,
            Err(error) => return Err(not_started(error, root).await),
        };
        let start = async {
            let copying = self.progress.begin("copy the root drive", WaitsFor::Nobody);
            let root = root.complete().await?;
            drop(copying);
            self.configure(&vmm, &spec, &shown, &stubs, emulates)
                .await?;
            let ours = guest_image::describe(&spec.root.path).is_some();
            let guest = self.agent(&announcements, ours).await;
            let guest = guest.map_err(Failure::Guest)?;
            let drives = stubs.connect(
                self.jail.exposer(),
                Arc::new(Patcher(vmm.client().clone())),
                Arc::new(Mounter(guest.clone())),
                Arc::new(BootOnly),
            );
            self.mount(&spec, files.mounts, &drives).await?;
            Ok((root, guest, drives))
        };
        let (root, guest, drives) = tokio::select! {
            biased;
            result = start => match result {
                Ok(started) => started,
                Err(failure) => return Err(explain(failure, &vmm).await),
            },
            end = vmm.exited() => return Err(ended(end)),
        };
        Ok(Machine {
            dir: self.vm_dir.clone(),
            keeper: guest.keep(vmm.exited()),
            jail: Arc::clone(&self.jail),
            ports: self.ports.clone(),
            spec,
            vmm,
            guest,
            drives,
            root: Mutex::new(Some(root)),
            fifos,
        })
    }

    /// Shows the VMM the files that it boots from and writes to.
    async fn show(
        &self,
        spec: &VmSpec,
        root: &HostFile,
        fifos: &Fifos,
    ) -> Result<Shown, BootError> {
        let jail = &self.jail;
        Ok(Shown {
            kernel: jail.show(Role::Kernel, &spec.kernel).await?,
            initrd: match &spec.initrd {
                Some(initrd) => Some(jail.show(Role::Initrd, initrd).await?),
                None => None,
            },
            root: jail.show_root(root, !spec.root.writable)?,
            log: jail.show_fifo(dir::LOG_FIFO, &fifos.log).await?,
            metrics: jail.show_fifo(dir::METRICS_FIFO, &fifos.metrics).await?,
        })
    }

    async fn start(&self, path: &Path, fifos: &Fifos, state: &mut State) -> Result<Vmm, BootError> {
        self.timeline.vm("vmm_spawned");
        let (what, waits_for) = match self.jail.cgroup_path() {
            None => ("start the VMM", WaitsFor::Vmm),
            Some(_) => ("have the OCI runtime start the VMM", WaitsFor::OciRuntime),
        };
        let starting = self.progress.begin(what, waits_for);
        let start = Start {
            log_output: self.config.log_levels.vmm_output(),
            output: self.progress.console(),
            log: fifos.log_tail.clone(),
            ..Start::default()
        };
        let vmm = self.jail.start(start).await?;
        drop(starting);
        let _record = self.progress.begin("record the VMM", WaitsFor::Nobody);
        state.vmm = ProcessId::of(vmm.pid());
        state.store(self.vm_dir)?;
        self.progress.set_vmm(VmmInfo {
            pid: vmm.pid(),
            path: path.to_owned(),
            version: vmm.version().to_string(),
        });
        self.timeline.vm("vmm_api_ready");
        Ok(vmm)
    }

    async fn configure(
        &self,
        vmm: &Vmm,
        spec: &VmSpec,
        shown: &Shown,
        stubs: &StubDrives,
        emulates: bool,
    ) -> Result<(), BootError> {
        let configuring = self.progress.begin("configure the VMM", WaitsFor::Vmm);
        configure(vmm.client(), self.config, spec, shown, stubs, emulates).await?;
        drop(configuring);
        let _starting = self.progress.begin("start the guest", WaitsFor::Vmm);
        configure::start(vmm.client(), spec, stubs).await?;
        self.jail.seal(dir::VSOCK)?;
        self.timeline.vm("instance_started");
        Ok(())
    }

    /// Waits for the agent and introduces the VM to it. One of `ours` announces itself.
    async fn agent(
        &self,
        announcements: &fc_vsock::Listener,
        ours: bool,
    ) -> Result<Guest, GuestError> {
        let vsock = self.ports.vsock();
        // Later than the caller's deadline: that one is to be reported.
        let beyond = self.deadline + POLL_AFTER;
        let booting = self.progress.begin("boot the guest", WaitsFor::Guest);
        let poll = async {
            if ours {
                return std::future::pending().await;
            }
            tokio::time::sleep(POLL_AFTER).await;
            Guest::poll(self.vm_dir, vsock, beyond).await
        };
        let (guest, announced) = tokio::select! {
            biased;
            announced = announcement(announcements) => {
                announced?;
                (Guest::connect(self.vm_dir, vsock, self.deadline).await?, true)
            }
            guest = poll => (guest?, false),
        };
        drop(booting);
        let _introducing = self.progress.begin("configure the agent", WaitsFor::Guest);
        guest.configure(announced, beyond, self.timeline).await?;
        self.timeline.vm("agent_connected");
        Ok(guest)
    }

    /// Refuses drives that the VMM could not use, before there is a VM.
    fn check(&self, spec: &VmSpec, files: &DriveFiles) -> Result<(), BootError> {
        self.jail.check_drive(&files.root, !spec.root.writable)?;
        for (index, (mount, file)) in spec.drive_mounts.iter().zip(&files.mounts).enumerate() {
            let checked = self.jail.check_drive(file, !mount.writable);
            checked.map_err(|source| BootError::DriveFile {
                index,
                source: Box::new(source),
            })?;
        }
        Ok(())
    }

    /// Mounts the drive mounts in the guest, in their order.
    async fn mount(
        &self,
        spec: &VmSpec,
        files: Vec<HostFile>,
        drives: &Drives,
    ) -> Result<(), BootError> {
        for (index, (mount, file)) in spec.drive_mounts.iter().zip(files).enumerate() {
            let copying = self.progress.begin("show a drive mount", WaitsFor::Nobody);
            let shown = async {
                self.jail
                    .drive_file(file, !mount.writable)?
                    .complete()
                    .await
            };
            let file = shown.await.map_err(|source| BootError::DriveFile {
                index,
                source: Box::new(source),
            })?;
            drop(copying);
            let _mounting = self.progress.begin("mount a drive mount", WaitsFor::Guest);
            let attach = Attach {
                file,
                destination: mount.vm_path.clone(),
                fstype: mount.fstype.clone(),
                options: mount.options.clone(),
                owner: drive_mount_field(index),
            };
            let attached = drives.attach_drive_mount(index, attach).await;
            attached.map_err(|source| BootError::DriveMount {
                index,
                host_path: mount.host_path.clone(),
                source: Box::new(source),
            })?;
        }
        Ok(())
    }
}

fn layout(spec: &VmSpec) -> Layout {
    let mounts = spec.drive_mounts.iter();
    Layout {
        containers: spec.containers,
        drive_mounts: mounts
            .map(|mount| DriveMountSlot {
                read_only: !mount.writable,
            })
            .collect(),
        shared: spec.shared_slots,
        volumes: spec.volume_slots,
    }
}
